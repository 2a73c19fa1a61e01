"""Where a graph runs on CUDA, told without a GPU.

    place               the proof: every node that computes has a kernel of CUDA, and no step copies between devices
    kernel_table        what one version of ONNX Runtime can do there; `make_kernel_table` writes it
    stub_libraries      stand-ins for the CUDA libraries, over which ONNX Runtime itself is asked: `assignments` where
                        it puts a graph's nodes, `trials` what its kernels refuse, `host_memory` where they read

The table and the tests need the stand-ins, the proof only the table.
"""

from export.placement.place import Placement, place

__all__ = ["Placement", "place"]
