/* Nothing: a library that is named libtorch.so and needs no other. */
