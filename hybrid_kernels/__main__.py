from hybrid_kernels.cli import main

main()
