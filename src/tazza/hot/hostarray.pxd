from tazza.hot cimport _array
