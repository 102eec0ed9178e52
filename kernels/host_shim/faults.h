// A segmentation fault, a trap or a division by zero inside a kernel ends the launch with a message, not the process.
#pragma once

#include <string>

namespace kpl_shim {

void catch_faults();
void release_faults();
/// What the last fault was; empty if there was none.
std::string fault_message();
/// Back to the caller of the launch; in scheduler.cpp.
void abandon_to_main();

}  // namespace kpl_shim
