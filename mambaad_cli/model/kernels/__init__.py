"""The selective scan and the fused norms: plain PyTorch, C, CUDA and Triton versions with one signature."""
