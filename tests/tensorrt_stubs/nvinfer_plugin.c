/* Stands in for libnvinfer_plugin. */
int initLibNvInferPlugins(void *logger, const char *name_space) { (void)logger; (void)name_space; return 1; }
