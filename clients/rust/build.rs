//! Generates the stubs from the contract into cargo's output directory.

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("../../protos");
    let files: Vec<PathBuf> = std::fs::read_dir(root.join("typeless/v1"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_, std::io::Error>>()?;
    let mut config = tonic_prost_build::Config::new();
    config.protoc_executable(protoc_bin_vendored::protoc_bin_path()?);
    tonic_prost_build::configure().build_server(false).compile_with_config(config, &files, &[root.to_path_buf()])?;
    Ok(())
}
