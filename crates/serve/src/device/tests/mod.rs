mod memory;
mod scope;
mod experiment;
