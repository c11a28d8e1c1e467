"""cuDNN on CUDA devices: its states, and plans that execute on Buffers."""
