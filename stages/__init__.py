"""One file per DVC stage: it reads its params section and its paths, and calls one function of the library."""
