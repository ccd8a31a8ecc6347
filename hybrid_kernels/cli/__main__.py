"""`python -m hybrid_kernels.cli`, which `torchrun -m` needs."""

from hybrid_kernels.cli import main

if __name__ == "__main__":
    main()
