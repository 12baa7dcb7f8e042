def read(data, graphs, scenes): raise NotImplementedError
