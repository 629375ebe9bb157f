//! Tests of the cache as a whole.

mod damage;
mod full;
mod reading;
mod sharing;
mod support;
