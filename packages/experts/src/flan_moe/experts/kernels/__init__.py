"""The experts as Triton kernels. Importing this imports no triton; `kernels.backend` does."""
