"""The command line: words to driver calls. Machine output on stdout, the rest on stderr."""
