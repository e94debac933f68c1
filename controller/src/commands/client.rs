//! `status`, `legend` and `flush`: asking the running controller.

use std::process::ExitCode;

use anyhow::Context;
use fw_nft::{Kernel, NetlinkKernel, Table};
use serde_json::Value;

use super::{EXIT_NO, print};
use crate::config::{ClientArgs, DnsArgs, FlushArgs, Output, StatusArgs};
use crate::control::client::{ClientError, ask};
use crate::control::{LegendEntry, Request};
use crate::persist::{self, AddressRecord};
use crate::state::{Identity, StateDir, StateError};
use crate::status::{Status, describe::describe};
use crate::{addresses, names};

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

pub(super) fn dns(args: &DnsArgs) -> anyhow::Result<ExitCode> {
    let answer = ask(&args.client.control_socket, &Request::Dns { name: args.name.clone() })?;
    let listed = answer["learned"]["names"].as_array().map_or(&[][..], Vec::as_slice);
    let is_known = args.name.is_none() || !listed.is_empty();
    let code = if is_known { ExitCode::SUCCESS } else { ExitCode::from(EXIT_NO) };
    if args.json {
        print(serde_json::to_string_pretty(&answer)? + "\n")?;
        return Ok(code);
    }
    let mut text: String = listed.iter().map(learned_name).collect();
    if let Some(more @ 1..) = answer["learned"]["leftOut"].as_u64() {
        text.push_str(&format!("and {more} more names; give a part of a name\n"));
    }
    match &args.name {
        Some(name) if listed.is_empty() => text = format!("{name} is not known\n"),
        Some(_) => {}
        None => text.push_str(&format!("\n{}", describe(&answer["figures"]))),
    }
    print(text)?;
    Ok(code)
}

/// A name and its addresses, a line each.
fn learned_name(name: &Value) -> String {
    let list = |value: &Value| {
        let words = value.as_array().into_iter().flatten().filter_map(Value::as_str);
        words.collect::<Vec<_>>().join(", ")
    };
    let mut text = format!(
        "{}  by {} of {}, {} connections, asked {}\n",
        name["name"].as_str().unwrap_or_default(),
        list(&name["selectors"]),
        list(&name["policies"]),
        name["hits"],
        name["asked"].as_str().unwrap_or_default()
    );
    for (address, until) in name["addresses"].as_object().into_iter().flatten() {
        text.push_str(&format!("  {address}  until {}\n", until.as_str().unwrap_or_default()));
    }
    text
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
        Err(error @ ClientError::Nobody(..)) => flush_orphan(args, error),
        Err(error) => Err(error.into()),
    }
}

/// Removes what a controller left that does not run.
fn flush_orphan(args: &FlushArgs, nobody: ClientError) -> anyhow::Result<ExitCode> {
    let state = match StateDir::open(&args.state_dir) {
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
    names::remove_journal(&args.state_dir)?;
    names::remove_programs(&args.bpf_dir)?;
    let record = AddressRecord { state: state.map(Into::into), identity: Identity::of_this_process().ok() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let failed = runtime.block_on(addresses::remove_all(&record)).context("source NAT addresses stay")?;
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("; "));
    print("flushed: no firewall-controller runs, its table is gone\n")
}
