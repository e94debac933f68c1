//! `status`, `legend` and `flush`: asking the running controller.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use fw_nft::{Kernel, NetlinkKernel, Table};
use serde_json::Value;

use super::{EXIT_NO, print};
use crate::addresses;
use crate::config::{ClientArgs, FlushArgs, Output, StatusArgs};
use crate::control::client::{ClientError, ask};
use crate::control::{LegendEntry, Request};
use crate::persist::{self, AddressRecord};
use crate::state::{Identity, StateDir, StateError};
use crate::status::{Status, describe::describe};

pub(super) fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let answer = ask(&args.client.control_socket, &Request::Status)?;
    let status: Status = serde_json::from_value(answer.clone())
        .context("the running firewall-controller is of another version; restart it")?;
    let text = match args.output {
        Output::Json => serde_json::to_string_pretty(&answer)? + "\n",
        Output::Yaml => serde_saphyr::to_string(&answer)?,
        Output::Text => {
            let headline = status.status.firewall.message.as_deref().unwrap_or_default();
            format!("{headline}\n\n{}", describe(&answer))
        }
    };
    print(text)?;
    Ok(if status.status.controller.enforcing { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) })
}

pub(super) fn legend(args: &ClientArgs) -> anyhow::Result<ExitCode> {
    let answer = ask(&args.control_socket, &Request::Legend)?;
    let entries: Vec<LegendEntry> = serde_json::from_value(answer)?;
    let line = |entry: &LegendEntry| {
        let comments = if entry.comments.is_empty() { "-".to_owned() } else { entry.comments.join("; ") };
        format!("{}\t{}\t{comments}\n", entry.origin, entry.chain)
    };
    print(entries.iter().map(line).collect::<String>())
}

pub(super) fn flush(args: &FlushArgs) -> anyhow::Result<ExitCode> {
    let request = if args.undo { Request::UndoFlush } else { Request::Flush };
    match ask(&args.client.control_socket, &request) {
        Ok(Value::Null) | Ok(_) if args.undo => print("enforcing again\n"),
        Ok(_) => print("flushed: NOT ENFORCING until `firewall-controller flush --undo` or a restart\n"),
        Err(error @ ClientError::Nobody(..)) if args.undo => Err(error.into()),
        Err(error @ ClientError::Nobody(..)) => flush_orphan(&args.state_dir, error),
        Err(error) => Err(error.into()),
    }
}

/// Removes what a controller left that does not run.
fn flush_orphan(state_dir: &Path, nobody: ClientError) -> anyhow::Result<ExitCode> {
    let state = match StateDir::open(state_dir) {
        Ok(state) => Some(state),
        // It runs after all, with another socket.
        Err(StateError::Locked(_)) => return Err(nobody.into()),
        Err(_) => None,
    };
    let mut kernel = NetlinkKernel::open()?;
    match kernel.read()? {
        Table::Absent => {}
        Table::Ours(_) => {
            kernel.delete_table()?;
        }
        Table::Foreign(_) => anyhow::bail!(
            "table inet firewall was not made by this program; `nft delete table inet firewall` removes it"
        ),
        Table::Taken { port } => return Err(fw_nft::Error::Taken { port }.into()),
    }
    if let Some(state) = &state {
        persist::forget(state)?;
    }
    let record = AddressRecord { state: state.map(Into::into), identity: Identity::of_this_process().ok() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let failed = runtime.block_on(addresses::remove_all(&record)).context("source NAT addresses stay")?;
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("; "));
    print("flushed: no firewall-controller runs, its table is gone\n")
}
