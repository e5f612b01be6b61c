"""The GPU's selective scan: imported when a CUDA tensor arrives, never before."""
