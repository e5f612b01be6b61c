"""The selective scan and the fused norms: plain PyTorch, C, CUDA and Triton behind one signature each."""
