"""Side by side with peers: started by hand, never imported by the packages.

python -m benchmarks.peers      every variant, both models, on the CPU
python -m benchmarks.scaling    export and decoding at growing shapes
python -m benchmarks.gpu        the same variants on CUDA, where there is a GPU
python -m benchmarks.page       docs/benchmarks.md from the stored results
"""
