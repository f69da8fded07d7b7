# Links the module for an older glibc than this machine's: zig brings stubs of every version, and g++ the objects.
# libstdc++ goes in whole and hidden, so that no version of it is asked for; of libgcc the part that reads the
# processor's features goes in, as zig's own runtime has one that nobody fills.
execute_process(COMMAND "${Python3_EXECUTABLE}" -m ziglang version RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "SEMOBRIDGE_GLIBC=${SEMOBRIDGE_GLIBC} but zig was not found. "
    "Install it (pip install ziglang), or leave SEMOBRIDGE_GLIBC out to link for this machine.")
endif()
if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  message(FATAL_ERROR "SEMOBRIDGE_GLIBC needs g++, found ${CMAKE_CXX_COMPILER_ID}. Set CXX=g++.")
endif()
set(SB_STATIC "")
foreach(name IN ITEMS libstdc++.a libgcc.a libgcc_s.so.1)
  execute_process(COMMAND "${CMAKE_CXX_COMPILER}" -print-file-name=${name}
    OUTPUT_VARIABLE path OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT IS_ABSOLUTE "${path}")
    message(FATAL_ERROR "SEMOBRIDGE_GLIBC needs ${name}, which ${CMAKE_CXX_COMPILER} does not have. "
      "Install it (Debian and Ubuntu: apt-get install g++).")
  endif()
  string(APPEND SB_STATIC " \"${path}\"")
endforeach()
set(map "${CMAKE_CURRENT_BINARY_DIR}/exports.map")
file(WRITE "${map}" "{ global: PyInit__C; local: *; };\n")
# zig's linker reads native objects alone.
set(CMAKE_INTERPROCEDURAL_OPTIMIZATION OFF)
# The OpenMP runtime is PyTorch's, and Python's own symbols come from its process.
string(CONCAT CMAKE_CXX_CREATE_SHARED_MODULE
  "\"${Python3_EXECUTABLE}\" -m ziglang cc -target ${CMAKE_SYSTEM_PROCESSOR}-linux-gnu.${SEMOBRIDGE_GLIBC} "
  "-shared -s -o <TARGET> <OBJECTS> <LINK_LIBRARIES>${SB_STATIC} -ldl -lrt -lpthread -lm "
  "-Wl,--gc-sections -Wl,--allow-shlib-undefined \"-Wl,--version-script=${map}\"")
