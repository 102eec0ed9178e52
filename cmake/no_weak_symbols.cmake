# cmake -DNM=nm -DOBJECTS=a.o;b.o -P no_weak_symbols.cmake: fails if an object defines a weak or a unique symbol.
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND "${NM}" -C --defined-only "${object}" OUTPUT_VARIABLE symbols RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "${NM} cannot read ${object}")
  endif()
  string(REGEX MATCHALL "[^\n]* [VWvwu] [^\n]*" weak "${symbols}")
  if(weak)
    string(REPLACE ";" "\n" weak "${weak}")
    message(FATAL_ERROR "${object} defines symbols that the linker merges with those of other instruction sets:\n"
      "${weak}\nGive them internal linkage (an anonymous namespace).")
  endif()
endforeach()
