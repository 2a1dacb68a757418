"""Backend ``crossbar``: weights in resistive crossbars, inputs bit by bit, converters per column.

``dialect`` says what the programs are, ``target`` what the hardware is, ``passes`` map, calibrate,
place and schedule, ``simulate`` computes what the hardware computes, ``cost`` counts what it does.
"""
