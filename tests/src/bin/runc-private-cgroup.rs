//! `runc`, but every container has a control group namespace of its own, as containerd makes them
//! where there is only version 2 of control groups.
//!
//! containerd says `runc … create --bundle FOLDER … ID`; the real one is beside this, as `runc`.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args_os().collect();
    let (name, rest) = arguments.split_first().context("no name")?;
    for pair in rest.windows(2) {
        if let [option, folder] = pair
            && option == "--bundle"
        {
            let file = Path::new(folder).join("config.json");
            let mut config: Value = serde_json::from_slice(&std::fs::read(&file)?)?;
            let namespaces = config.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut);
            namespaces.context("no namespaces")?.push(json!({"type": "cgroup"}));
            std::fs::write(&file, config.to_string())?;
        }
    }
    Err(Command::new(Path::new(name).with_file_name("runc")).args(rest).exec().into())
}
