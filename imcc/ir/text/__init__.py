"""The text form: grammar, parser and printer. ``parse(print(m))`` equals ``m``."""

from imcc.ir.text.parser import parse_module, parse_type
from imcc.ir.text.printer import print_function, print_module, print_op

__all__ = ["parse_module", "parse_type", "print_function", "print_module", "print_op"]
