"""Weight sync: new weights of the policy go from the learner into rollout engines that keep running.

There are two kinds of transport, with the same versions and checksums:

- `object_store`: packed parts in Ray's object store, loaded by every engine. Works with and without GPUs.
- `nccl` and `ipc`: from GPU to GPU by vLLM's weight transfer, with `gpu_sender` on the learner's side, `gpu_receiver`
  on the engine's, and `coordinator` between them. Experimental: tested with vLLM's own classes over a simulated
  communicator, and not yet run on GPUs.

`config.resolve_backend` chooses the transport, `transports.create_sender` builds the learner's end of it.
"""
