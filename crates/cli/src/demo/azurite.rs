//! The storage emulator of the demonstration.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use taskhub_core::{IdSource, RandomIds};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::args::ConnectionString;

const ACCOUNT: &str = "devstoreaccount1";
/// The emulator's well-known key, published in its documentation: not a secret.
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Another process may take a free port before the emulator does.
const START_ATTEMPTS: u32 = 3;

/// An Azurite process with its data. Both end with it unless they are to be kept.
#[derive(Debug)]
pub(crate) struct Emulator {
    child: Child,
    ports: [u16; 3],
    data: PathBuf,
    keep: bool,
}

impl Emulator {
    /// Installs the pinned version where needed and starts it on free ports of the loopback interface.
    pub(crate) async fn start(keep: bool) -> Result<Self> {
        let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../azurite-tests");
        if !home.join("package-lock.json").is_file() {
            bail!(
                "the emulator is started from a checkout of the repository, which is gone. directory=`{}`",
                home.display()
            );
        }
        install(&home).await?;
        for attempt in 1.. {
            match Self::try_start(&home, keep).await {
                Ok(emulator) => return Ok(emulator),
                Err(error) if attempt == START_ATTEMPTS => return Err(error),
                Err(error) => tracing::debug!(error = format!("{error:#}"), "the emulator did not start"),
            }
        }
        unreachable!("the last attempt returns")
    }

    async fn try_start(home: &Path, keep: bool) -> Result<Self> {
        let ports = free_ports()?;
        let name = format!("taskhub-azurite-{}", &RandomIds.guid().simple().to_string()[..12]);
        let data = std::env::temp_dir().join(name);
        fs::create_dir(&data).context("could not make a directory for the emulator")?;
        let log = File::create(data.join("emulator.log"))?;
        let mut command = Command::new("node");
        command
            .arg(home.join("node_modules/azurite/dist/src/azurite.js"))
            .args(["--silent", "--skipApiVersionCheck", "--disableTelemetry", "--location"])
            .arg(&data)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(!keep);
        for (service, port) in ["blob", "queue", "table"].iter().zip(ports) {
            command.args([format!("--{service}Host"), "127.0.0.1".into()]);
            command.args([format!("--{service}Port"), port.to_string()]);
        }
        // Ctrl-C is for the demonstration; it ends the emulator itself, or leaves it alone.
        #[cfg(unix)]
        command.process_group(0);
        let child = command.spawn().context("could not start node; the emulator needs Node.js")?;
        let mut emulator = Self { child, ports, data, keep: false };
        tokio::time::timeout(START_TIMEOUT, emulator.answers())
            .await
            .context("the emulator does not answer")??;
        emulator.keep = keep;
        Ok(emulator)
    }

    async fn answers(&mut self) -> Result<()> {
        for port in self.ports {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
                if let Some(status) = self.child.try_wait()? {
                    let log = fs::read_to_string(self.data.join("emulator.log")).unwrap_or_default();
                    bail!("the emulator ended: {status}\n{}", log.trim_end());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.keep
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.child.id().unwrap_or_default()
    }

    /// Where its data are.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// With explicit endpoints, as Storage Explorer takes it.
    pub(crate) fn connection_string(&self) -> ConnectionString {
        let mut text = format!("DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};");
        for (service, port) in ["Blob", "Queue", "Table"].iter().zip(self.ports) {
            text.push_str(&format!("{service}Endpoint=http://127.0.0.1:{port}/{ACCOUNT};"));
        }
        ConnectionString(text)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // It holds nothing worth saving; an orderly stop would wait for open connections.
        if let Err(error) = self.child.start_kill() {
            tracing::debug!(%error, "the emulator had ended");
        }
        if let Err(error) = fs::remove_dir_all(&self.data) {
            tracing::warn!(%error, directory = %self.data.display(), "could not remove the emulator's data");
        }
    }
}

/// Fetches the emulator unless the version of the lock file is there.
async fn install(home: &Path) -> Result<()> {
    let lock = home.join("package-lock.json");
    let installed = home.join("node_modules/.installed-lock.json");
    if let (Ok(wanted), Ok(found)) = (fs::read(&lock), fs::read(&installed))
        && wanted == found
    {
        return Ok(());
    }
    tracing::info!("installing the emulator");
    let npm = if cfg!(windows) { "npm.cmd" } else { "npm" };
    let status = Command::new(npm)
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
        .current_dir(home)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .await
        .context("could not run npm; the emulator needs Node.js with npm")?;
    if !status.success() {
        bail!("npm could not install the emulator: {status}");
    }
    fs::copy(&lock, &installed).context("could not note the installed version")?;
    Ok(())
}

/// Three ports that are free right now.
fn free_ports() -> Result<[u16; 3]> {
    // All three are held until all are known.
    let listeners = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = match listener {
            Ok(listener) => listener.local_addr()?.port(),
            Err(error) => bail!("no free port: {error}"),
        };
    }
    Ok(ports)
}
