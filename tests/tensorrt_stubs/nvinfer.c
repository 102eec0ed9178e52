/* Stands in for libnvinfer: what the genuine Python bindings need to be imported. Every factory says "no". */
#include <stddef.h>
void *createInferBuilder_INTERNAL(void *logger, int version) { (void)logger; (void)version; return NULL; }
void *createInferRuntime_INTERNAL(void *logger, int version) { (void)logger; (void)version; return NULL; }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) {
    (void)engine; (void)logger; (void)version; return NULL;
}
void *getBuilderPluginRegistry(int capability) { (void)capability; return NULL; }
void *getPluginRegistry(void) { return NULL; }
