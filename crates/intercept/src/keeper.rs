//! Reconcile loop for the interception rules: looks at them when the kernel reports a change and after an interval, and puts them
//! back, then proves by a connection of its own (proof.rs) and by the packets of pods (arrivals.rs) that they work. `podid nmi` runs it while it
//! serves. The rules stay when it ends.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::arrivals::{Arrivals, Lost};
use crate::changes::Changes;
use crate::{Backend, Error, Rules, conntrack, data_path, proof};

/// Pause after the first failure; it doubles up to the interval.
const FIRST_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Debounce: pause between a change and the look at it, because changes come in bursts.
const CHANGE_DEBOUNCE: Duration = Duration::from_millis(100);
/// Least time between two looks, for nodes where other programs change their rules all the time.
const MIN_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two readings of the counters: a pod's request that is lost must be told within seconds.
const READING_INTERVAL: Duration = Duration::from_secs(5);
/// Time until the reading that confirms a loss.
const CONFIRMING_INTERVAL: Duration = Duration::from_millis(500);

/// What the keeper has seen and done since it started; the source of metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Whether the rules were in place at the last look, and caught what they must.
    pub in_place: bool,
    /// How often the rules were looked at.
    pub checks: u64,
    /// How often the rules were put in place, the first time included.
    pub applied: u64,
    /// How often another program had changed or removed them.
    pub repaired: u64,
    /// How often a check or a change failed.
    pub failures: u64,
    /// How many older connections were forgotten when the rules first appeared.
    pub connections_cut: u64,
    /// How often the counters of the rules were read.
    pub reads: u64,
    /// How many first packets of pods' connections arrived behind all rules of the node.
    pub arrived: u64,
    /// How many were caught and did not arrive.
    pub lost: Lost,
    /// A network plugin that may take the packets of pods past the rules, while none has arrived.
    pub unproven: Option<&'static str>,
    /// Why the last look failed, for a person; `None` when it did not.
    pub trouble: Option<String>,
}

/// Looks after one set of rules.
#[derive(Debug)]
pub struct Keeper {
    backend: Backend,
    rules: Rules,
    interval: Duration,
    state: watch::Sender<State>,
    bypassed: watch::Sender<bool>,
}

impl Keeper {
    /// A keeper that looks every `interval` (at least a second).
    pub fn new(backend: Backend, rules: Rules, interval: Duration) -> Self {
        let interval = interval.max(FIRST_RETRY_DELAY);
        Self {
            backend,
            rules,
            interval,
            state: watch::Sender::new(State::default()),
            bypassed: watch::Sender::new(false),
        }
    }

    /// The state, which changes with every look.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// For whoever knows that the network plugin takes the packets of pods past the rules, so that rules in place are worth nothing.
    pub fn bypassed(&self) -> watch::Sender<bool> {
        self.bypassed.clone()
    }

    /// Puts the rules in place at once and repairs them until shutdown, as soon as the kernel reports a change and after every
    /// interval. A failure is retried for ever, with growing pauses. The rules stay when this returns; [`Backend::cleanup`]
    /// removes them.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut retry = FIRST_RETRY_DELAY;
        let mut arrivals = Arrivals::default();
        let mut bypassed = self.bypassed.subscribe();
        self.suspect().await;
        let changes = Changes::subscribe()
            .inspect_err(|error| {
                warn!(reason = %error, "the kernel does not tell of changes; the rules are looked at now and then");
            })
            .ok();
        loop {
            // A look that is cut short kills its tool: the rules of the next node agent must stay.
            let looked = tokio::select! {
                () = shutdown.cancelled() => return,
                looked = self.look(&arrivals) => looked,
            };
            let pause = match looked {
                Ok(()) => {
                    retry = FIRST_RETRY_DELAY;
                    self.interval
                }
                Err(error) => {
                    self.failed(&error);
                    let pause = retry.min(self.interval);
                    retry = retry.saturating_mul(2);
                    pause
                }
            };
            let earliest = Instant::now() + MIN_LOOK_INTERVAL;
            let changed = async {
                heard(changes.as_ref()).await;
                tokio::time::sleep_until(earliest.max(Instant::now() + CHANGE_DEBOUNCE)).await;
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = changed => {}
                () = self.read_counters(&mut arrivals) => {}
                // This keeper has the sender.
                _ = bypassed.changed() => {}
            }
        }
    }

    /// Tells of a network plugin that may take packets past the rules.
    async fn suspect(&self) {
        let Ok(Some(plugin)) = data_path::suspect().await else {
            return;
        };
        warn!(
            plugin,
            "the network plugin may take packets of pods past the node's netfilter hooks, and with them podid (Cilium with eBPF host routing, OVN-Kubernetes without the gateway mode local): the node's own identities would be open to pods. Nothing is proven until a request of a pod arrives"
        );
        self.state
            .send_modify(|state| state.unproven = Some(plugin));
    }

    /// Reads the counters of the rules until they say something else about the arrival of packets.
    async fn read_counters(&self, arrivals: &mut Arrivals) {
        let counters = match self.backend.counters().await {
            Ok(counters) if !self.rules.withdrawing => counters,
            // A look fails for the same reason and tells it.
            _ => return std::future::pending().await,
        };
        let before = arrivals.lost();
        loop {
            // While the rules are not there, a look puts them back.
            if let Ok(Some(counts)) = counters.read().await {
                arrivals.observe(counts, Instant::now());
                let (arrived, lost) = arrivals.totals();
                self.state.send_modify(|state| {
                    state.reads += 1;
                    state.arrived = arrived;
                    state.lost = lost;
                    state.unproven = state.unproven.filter(|_| arrived == 0);
                });
            }
            if arrivals.lost() != before {
                return;
            }
            let pause = if arrivals.is_suspicious() {
                CONFIRMING_INTERVAL
            } else {
                READING_INTERVAL
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn look(&self, arrivals: &Arrivals) -> Result<(), Error> {
        let first = self.state.borrow().checks == self.state.borrow().failures;
        if !self.backend.verify(&self.rules).await? {
            self.backend.apply(&self.rules).await?;
            if !first {
                warn!(backend = ?self.backend, "the interception rules had been changed by somebody else; put back");
            }
            self.state.send_modify(|state| {
                state.applied += 1;
                state.repaired += u64::from(!first);
            });
        }
        proof::prove(&self.rules).await?;
        if *self.bypassed.borrow() {
            return Err(Error::Bypassed);
        }
        arrivals.check()?;
        let cut = if first && !self.rules.withdrawing {
            self.cut().await
        } else {
            0
        };
        if !first && self.state.borrow().trouble.is_some() {
            info!(backend = ?self.backend, "interception is in place again");
        }
        self.state.send_modify(|state| {
            state.checks += 1;
            state.in_place = true;
            state.connections_cut += cut;
            state.trouble = None;
        });
        Ok(())
    }

    /// Forgets older connections. A failure does no harm, because the rules end these connections with their next packet.
    async fn cut(&self) -> u64 {
        match conntrack::cut_connections(&self.rules).await {
            Ok(cut) => {
                info!(backend = ?self.backend, cut, "interception is in place");
                cut
            }
            Err(error) => {
                warn!(backend = ?self.backend, reason = %error, "interception is in place; older connections stay tracked until they end");
                0
            }
        }
    }

    fn failed(&self, error: &Error) {
        let trouble = Some(error.to_string());
        // Once, until it is another one or was over in between.
        if self.state.borrow().trouble != trouble {
            warn!(backend = ?self.backend, reason = %error, "interception could not be checked or put in place");
        }
        self.state.send_modify(|state| {
            state.checks += 1;
            state.failures += 1;
            state.in_place = false;
            state.trouble = trouble;
        });
    }
}

/// Returns when the kernel reports a change; never without a subscription.
async fn heard(changes: Option<&Changes>) {
    if let Some(changes) = changes
        && changes.next().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
