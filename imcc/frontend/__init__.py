"""From a user's model to IR: model files, capture with ``torch.export``, conversion of aten ops.

:func:`imcc.frontend.model_file.load_model_file` reads a user's file,
:func:`imcc.frontend.capture.capture` turns a torch module into IR. Both load torch.
"""
