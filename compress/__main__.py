"""``python -m compress``, which ``torchrun -m compress`` starts too."""

from compress.cli import main

if __name__ == "__main__":
    main()
