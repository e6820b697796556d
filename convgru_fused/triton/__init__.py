"""The backend "triton": see docs/triton.md."""
