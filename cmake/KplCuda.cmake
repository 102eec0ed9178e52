# Sets KPL_NVCC and KPL_CUDA_TARGETS, the architectures that fat binaries are made for; both empty without.
#
# A fat binary of every architecture takes minutes, so installing makes none unless it is asked to (KPL_CUDA=ON, for
# wheels that are given away). AUTO compiles for the GPUs of this machine, if it has any and nvcc; elsewhere the sources
# alone are installed, which NVRTC compiles at their first use.
set(KPL_NVCC "")
set(KPL_CUDA_TARGETS "")

if(NOT KPL_CUDA STREQUAL "AUTO" AND NOT KPL_CUDA)
  return()
endif()
find_program(KPL_NVCC_PROGRAM nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin)
if(NOT KPL_NVCC_PROGRAM)
  if(KPL_CUDA STREQUAL "AUTO")
    return()
  endif()
  message(FATAL_ERROR "KPL_CUDA=${KPL_CUDA} asks for compiled GPU kernels, which need nvcc (CUDA 12 or newer), and "
    "there is none. Put it on the path, or leave them out with -Ccmake.define.KPL_CUDA=OFF.")
endif()

if(KPL_CUDA STREQUAL "AUTO")
  find_program(KPL_NVIDIA_SMI nvidia-smi)
  if(NOT KPL_NVIDIA_SMI)
    return()
  endif()
  execute_process(COMMAND "${KPL_NVIDIA_SMI}" --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE found RESULT_VARIABLE failed ERROR_QUIET TIMEOUT 20)
  if(failed)
    return()
  endif()
  string(REGEX MATCHALL "[0-9]+\\.[0-9]" found "${found}")
  string(REPLACE "." "" wanted "${found}")
  list(REMOVE_DUPLICATES wanted)
else()
  set(wanted ${KPL_CUDA_ARCHITECTURES})
endif()

# sm_88 and sm_110 came with CUDA 13: an older nvcc makes what it can, and the PTX serves the rest.
execute_process(COMMAND "${KPL_NVCC_PROGRAM}" --list-gpu-code OUTPUT_VARIABLE known RESULT_VARIABLE failed ERROR_QUIET)
foreach(architecture IN LISTS wanted)
  if(known MATCHES "sm_${architecture}(\n|$)")
    list(APPEND KPL_CUDA_TARGETS ${architecture})
  else()
    message(STATUS "GPU kernels: ${KPL_NVCC_PROGRAM} does not know sm_${architecture}")
  endif()
endforeach()
if(KPL_CUDA_TARGETS)
  set(KPL_NVCC "${KPL_NVCC_PROGRAM}")
endif()
