"""The pipeline's steps, one KFP component a file: parse the inputs, call one library function, write the outputs.

Module scope imports kfp and the standard library only. Everything large stays in the store and passes as a URI; KFP
artifacts hold what a person reads.
"""
