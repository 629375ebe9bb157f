mod experiment;
mod memory;
mod scope;
