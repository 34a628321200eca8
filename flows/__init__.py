"""The Prefect flows, thin as the stages are: which steps there are and in which order; what a step does is in the library."""
