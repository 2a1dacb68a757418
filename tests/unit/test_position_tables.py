"""Closed forms of position tables equal what torch computes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imcc.frontend import tables

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


@st.composite
def forms(draw):
    sizes = tuple(draw(SIZES))
    row = tuple(0 if size == 1 else draw(st.integers(-3, 3)) for size in sizes)
    return tables.Table(sizes, row, draw(st.integers(-5, 5)))


def check(name, meta, **arguments):
    made = tables.evaluate(name, meta, arguments)
    if made is not None:
        assert torch.equal(made.tensor(), meta), name
    return made


@settings(max_examples=60, deadline=None)
@given(forms(), st.integers(-3, 3), st.data())
def test_forms_are_exact(form, number, data):
    x = form.tensor()
    assert check("add.Scalar", x + number, x=form, other=number) is not None
    assert check("rsub.Scalar", number - x, x=form, other=number) is not None
    assert check("mul.Tensor", x * number, x=form, other=number) is not None
    for name, relation in (("le", torch.le), ("lt", torch.lt), ("ge", torch.ge), ("gt", torch.gt)):
        made = check(f"{name}.Scalar", relation(x, number), x=form, other=number)
        turned = check("unsqueeze", relation(x, number).unsqueeze(0), x=made, dim=0)
        assert turned is not None
    check("eq.Scalar", x == number, x=form, other=number)
    check("ne.Scalar", x != number, x=form, other=number)
    axis = data.draw(st.integers(0, x.dim() - 1))
    start = data.draw(st.integers(0, x.shape[axis] - 1))
    index = [slice(None)] * x.dim()
    index[axis] = slice(start, None, 2)
    assert check("slice.Tensor", x[tuple(index)], x=form, dim=axis, start=start, step=2)
    assert check("select.int", x.select(axis, start), x=form, dim=axis, index=start) is not None
    wide = x.unsqueeze(axis).expand(*x.shape[:axis], 3, *x.shape[axis:])
    apart = check("unsqueeze", x.unsqueeze(axis), x=form, dim=axis)
    assert check("expand", wide, x=apart) is not None
    check("cumsum", x.cumsum(axis), x=form, dim=axis)
    check("diff", x.diff(dim=axis), x=form, dim=axis)
    ahead = x.narrow(axis, 0, 1) - number
    first = check("slice.Tensor", x.narrow(axis, 0, 1), x=form, dim=axis, start=0)
    prepend = check("sub.Scalar", ahead, x=first, other=number)
    check("diff", x.diff(dim=axis, prepend=ahead), x=form, dim=axis, prepend=prepend)
    order = list(range(x.dim()))[::-1]
    assert check("permute", x.permute(order), x=form, dims=order) is not None
    places = [torch.arange(size) for size in x.shape]
    counted = [tables.Table((size,), (int(size > 1),), 0) for size in x.shape]
    if len(set(x.shape)) == 1:
        made = x[tuple(places)]
        assert check("index.Tensor", made, x=form, indices=counted) is not None


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_two_forms_broadcast(data):
    sizes = data.draw(SIZES)
    a, b = (
        tables.Table(
            shape, tuple(0 if n == 1 else data.draw(st.integers(-2, 2)) for n in shape), offset
        )
        for shape, offset in (
            (tuple(n if data.draw(st.booleans()) else 1 for n in sizes), 2),
            (tuple(sizes), -1),
        )
    )
    left, right = a.tensor(), b.tensor()
    assert check("sub.Tensor", left - right, x=a, other=b) is not None
    seen = check("le.Tensor", left <= right, x=a, other=b)
    other = check(
        "gt.Tensor", right > left - 2, x=b, other=tables.Table(a.sizes, a.coefficients, 0)
    )
    assert check("__and__.Tensor", (left <= right) & (right > left - 2), x=seen, other=other)
