// __syncthreads, the barrier of a cluster and that of a grid or team of blocks.
#pragma once

namespace kpl_shim {

/// Forgets what earlier launches waited for.
void reset_barriers();

}  // namespace kpl_shim
