#!/bin/sh
# Build libllama with every CPU variant of ggml from llama.cpp's source, as the sdist of llama-cpp-python carries it.
#
#   build.sh SOURCE OUT OBJECTS      SOURCE: the unpacked sdist; OUT: gets lib/, include/ and licenses/; OBJECTS: scratch
#
# ggml's CPU backends are plug-ins: the best one that the processor can run is loaded, so one image serves old and new ones.
# Left out are those of x86 processors that others serve nearly as well: sandybridge, ivybridge and piledriver (2011 to 2013) load sse42,
# cannonlake loads skylakex, and cooperlake loads cascadelake. This is a third of the compiler's time and 7 MB.
# Needs cmake, ninja and a C++ compiler; takes about twenty minutes of one core.
set -eu
source=$1/vendor/llama.cpp out=$2 objects=$3
sed -i -E '/ggml_add_cpu_backend_variant\((sandybridge|ivybridge|piledriver|cannonlake|cooperlake) /d' "$source/ggml/src/CMakeLists.txt"
cmake -S "$source" -B "$objects" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DBUILD_SHARED_LIBS=ON -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DGGML_CCACHE=OFF \
    -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH='$ORIGIN' \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF
ninja -C "$objects"
mkdir -p "$out/lib" "$out/include" "$out/licenses"
cp -a "$objects"/bin/lib*.so* "$out/lib/"
find "$out/lib" -type f -exec strip --strip-unneeded {} +
cp "$source"/include/llama.h "$source"/ggml/include/*.h "$out/include/"
cp "$source/LICENSE" "$out/licenses/llama.cpp"
cp "$source/AUTHORS" "$out/licenses/llama.cpp-AUTHORS"
