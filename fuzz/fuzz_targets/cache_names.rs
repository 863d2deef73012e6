//! Passes libFuzzer's input to [`blobferry_fuzz::cache_names`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| blobferry_fuzz::cache_names(data));
