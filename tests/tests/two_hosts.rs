//! Hosts that share a device of memory under different names, and reach the server over a network that fails: nobody reads a
//! wrong byte, nothing hangs, and whoever has lost something is told so.
//!
//! Each host is a network and a view of the file system of its own. Where those are not permitted, all of this is skipped.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use maru_client::Error;
use maru_hosts::Host;
use maru_proto::PoolHeader;
use maru_tests::{
    ClientConfig, ClientProcess, Cluster, ClusterPlan, Command, Memory, PAGE, Reply, make_device, wait_until,
};

fn keys(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{name}-{n}")).collect()
}

/// A client on the server's host, at its Unix socket.
fn neighbour(cluster: &Cluster, instance_id: &str) -> ClientProcess {
    connected(&cluster.host, ClientConfig::new(&cluster.server.socket(), instance_id))
}

fn connected(host: &Host, config: ClientConfig) -> ClientProcess {
    let mut client = ClientProcess::start_on(host);
    assert_eq!(client.call(Command::Connect(config)), Reply::Done);
    client
}

/// A client on the server's host and one on another, each with 3 chunks. The far one reads those of the near one, which has no
/// other pages.
fn near_and_far(cluster: &Cluster, host: &Host) -> (ClientProcess, ClientProcess) {
    let small = ClientConfig {
        region_size: 3 * PAGE as u64,
        auto_expand: false,
        ..ClientConfig::new(&cluster.server.socket(), "near")
    };
    let (mut near, mut far) = (connected(&cluster.host, small), cluster.connect(host, "far"));
    assert_eq!(near.each(Command::Store(keys("near", 3), PAGE)), ["stored"; 3]);
    assert_eq!(far.each(Command::Store(keys("far", 3), PAGE)), ["stored"; 3]);
    assert_eq!(far.count(Command::Acquire(keys("near", 3))), 3);
    assert_far_has_its_own(&mut near);
    (near, far)
}

/// The server sees the pins and the region of the far one, as they were at first.
fn assert_far_has_its_own(near: &mut ClientProcess) {
    wait_until("what was read meanwhile is released", || near.stats().pins == 3);
    assert_eq!(near.each(Command::Delete(keys("near", 3))), ["pinned"; 3]);
    let stats = near.stats();
    assert_eq!((stats.instances, stats.regions, stats.orphans), (2, 2, 0));
}

fn wait_until_it_goes_on(client: &mut ClientProcess) {
    wait_until("it goes on", || client.call(Command::Read(keys("near", 3))) == Reply::Count(3));
}

/// Both read what the far one has stored before and stores now.
fn assert_both_are_served(near: &mut ClientProcess, far: &mut ClientProcess) {
    assert_eq!(far.each(Command::Store(keys("later", 1), PAGE)), ["stored"]);
    let all = [keys("far", 3), keys("later", 1)].concat();
    for client in [near, far] {
        assert_eq!(client.call(Command::CheckHeld), Reply::Done);
        assert_eq!(client.count(Command::Read(all.clone())), 4);
    }
}

/// What a client on another host is told that stores a chunk and can't have memory for it.
fn refused_memory(far: &mut ClientProcess) -> String {
    let said = far.each(Command::Store(keys("far", 1), PAGE)).remove(0);
    assert!(said.contains("can't be reached here"), "{said}");
    said
}

#[test]
fn what_one_host_stores_another_reads_in_place() {
    for (memory, tls) in [(Memory::Coherent, false), (Memory::Coherent, true), (Memory::NotCoherent, false)] {
        let Some(cluster) = Cluster::start_as(ClusterPlan { memory, tls }, &[]) else { return };
        let (mut near, mut far) =
            (neighbour(&cluster, "near"), cluster.connect(&cluster.host("other"), "far"));
        assert_eq!(near.each(Command::BatchStore(keys("near", 100), PAGE)), ["stored"; 100]);
        assert_eq!(far.each(Command::BatchStore(keys("far", 100), PAGE)), ["stored"; 100]);
        // Every byte is compared.
        assert_eq!(far.count(Command::Acquire(keys("near", 100))), 100);
        assert_eq!(near.count(Command::Acquire(keys("far", 100))), 100);
        assert_eq!(near.each(Command::Delete(keys("near", 1))), ["pinned"]);
        assert_eq!(far.call(Command::ReleaseHeld), Reply::Done);
        wait_until("the pins are released", || near.stats().pins == 100);
        assert_eq!(near.each(Command::Delete(keys("near", 1))), ["deleted"]);
        for (client, device) in [(&mut near, cluster.device()), (&mut far, Cluster::device_elsewhere())] {
            let mut mappings = client.each(Command::Mappings(device));
            mappings.sort();
            assert_eq!(mappings, ["r--s", "rw-s"], "what is another's can't be written");
        }
    }
}

#[test]
fn a_chunk_that_did_not_come_to_another_hosts_memory_is_not_handed_out_there() {
    let plan = ClusterPlan { memory: Memory::NotCoherent, ..ClusterPlan::default() };
    let Some(cluster) = Cluster::start_as(plan, &[]) else { return };
    let with_sums = |config: ClientConfig| ClientConfig { checksum: true, ..config };
    let mut near = connected(&cluster.host, with_sums(ClientConfig::new(&cluster.server.socket(), "near")));
    let mut far = connected(&cluster.host("other"), with_sums(cluster.config("far")));
    assert_eq!(near.each(Command::Store(keys("first", 3), PAGE)), ["stored"; 3]);
    assert_eq!(far.each(Command::Store(keys("far", 3), PAGE)), ["stored"; 3]);
    assert_eq!(far.count(Command::Read(keys("first", 3))), 3);
    assert_eq!(near.count(Command::Read(keys("far", 3))), 3);

    assert_eq!(near.each(Command::Store(keys("second", 3), PAGE)), ["stored"; 3]);
    // As if the memory still had what was there before.
    let device = fs::OpenOptions::new().write(true).open(cluster.device()).unwrap();
    device.write_all_at(&[0; 16 * PAGE], PoolHeader::AREA_LEN).unwrap();
    assert_eq!(far.count(Command::Read(keys("second", 3))), 0);
    wait_until("what was pinned for it is released", || near.stats().pins == 0);
}

#[test]
fn only_a_client_of_the_servers_host_moves_onto_the_socket() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let address_on = |host: &Host| cluster.connect(host, host.name()).each(Command::ServerAddress);
    assert_eq!(address_on(&cluster.host), [cluster.server.socket().display().to_string()]);
    assert_eq!(address_on(&cluster.host("other")), [cluster.config("other").address]);
}

#[test]
fn a_client_of_another_host_has_to_present_the_token() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let mut client = ClientProcess::start_on(&cluster.host("other"));
    for wrong in ["", "another secret than theirs"] {
        let config = ClientConfig { auth_token: wrong.to_owned(), ..cluster.config("far") };
        let refused = client.refused(Command::Connect(config));
        assert!(refused.contains("not authorized"), "{refused}");
    }
    assert_eq!(client.call(Command::Connect(cluster.config("far"))), Reply::Done);
}

#[test]
fn a_host_without_the_pools_memory_is_told_so_and_keeps_no_region() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let without = cluster.plan("other").start().unwrap();
    let (mut near, mut far) = (neighbour(&cluster, "near"), cluster.connect(&without, "far"));
    near.each(Command::Store(keys("near", 3), PAGE));
    for _ in 0..3 {
        let said = refused_memory(&mut far);
        let expected = format!("{} No such file", Cluster::device_elsewhere().display());
        assert!(said.contains(&expected) && said.contains("name it in the device map"), "{said}");
        assert_eq!(far.count(Command::Read(keys("near", 3))), 0, "what can't be read counts as not stored");
    }
    assert_eq!(near.stats().regions, 1);
    wait_until("nothing stays pinned", || near.stats().pins == 0);
}

#[test]
fn a_host_that_does_not_know_its_own_name_of_the_device_is_told_to_say_it() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let config = ClientConfig { device_map: String::new(), ..cluster.config("far") };
    let mut far = connected(&cluster.host("other"), config);
    let said = refused_memory(&mut far);
    let tried = format!("{} No such file", cluster.device().display());
    assert!(said.contains(&tried) && said.contains("name it in the device map, UUID=PATH"), "{said}");
}

#[test]
fn another_device_under_the_name_of_the_right_one_is_never_mapped() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let wrong = make_device(&folder.path().join(cluster.device().file_name().unwrap()), 16 << 20);
    let mut far = cluster.connect(&cluster.host_with("other", folder.path()), "far");
    let mut near = neighbour(&cluster, "near");
    assert_eq!(near.each(Command::Store(keys("near", 3), PAGE)), ["stored"; 3]);
    let said = refused_memory(&mut far);
    let (right, wrong) = (format!("the memory of pool {}", cluster.uuid()), format!("is the pool {wrong}"));
    assert!(said.contains(&right) && said.contains(&wrong), "{said}");
    assert_eq!(far.count(Command::Read(keys("near", 3))), 0);
    assert_nothing_of_the_device_is_mapped(&mut far);
}

#[test]
fn the_device_as_it_was_before_it_was_emptied_is_never_mapped() {
    let Some(mut cluster) = Cluster::start(&["--grace", "200ms"]) else { return };
    // What a host has that lost touch with the device before.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::copy(cluster.device(), folder.path().join(cluster.device().file_name().unwrap())).unwrap();
    cluster.server.kill();
    cluster.restart_server(&["--fresh"]);
    let mut near = neighbour(&cluster, "near");
    assert_eq!(near.each(Command::Store(keys("near", 3), PAGE)), ["stored"; 3]);

    let mut behind = cluster.connect(&cluster.host_with("behind", folder.path()), "behind");
    let said = refused_memory(&mut behind);
    assert!(said.contains("is that pool under incarnation 2 and not 3"), "{said}");
    assert_eq!(behind.count(Command::Read(keys("near", 3))), 0);
    assert_nothing_of_the_device_is_mapped(&mut behind);
    let mut far = cluster.connect(&cluster.host("other"), "far");
    assert_eq!(far.count(Command::Read(keys("near", 3))), 3);
    assert_eq!(far.each(Command::Store(keys("far", 3), PAGE)), ["stored"; 3]);
}

fn assert_nothing_of_the_device_is_mapped(client: &mut ClientProcess) {
    assert_eq!(client.each(Command::Mappings(Cluster::device_elsewhere())), [""; 0]);
}

#[test]
fn memory_of_the_servers_host_is_refused_to_other_hosts() {
    let plan = ClusterPlan { memory: Memory::OfItsHost, ..ClusterPlan::default() };
    let Some(cluster) = Cluster::start_as(plan, &[]) else { return };
    let (mut near, mut far) = (neighbour(&cluster, "near"), cluster.connect(&cluster.host("other"), "far"));
    assert_eq!(near.each(Command::Store(keys("near", 3), PAGE)), ["stored"; 3]);
    let said = refused_memory(&mut far);
    assert!(said.contains("memory of the server's host") && said.contains("fsdax and devdax"), "{said}");
    assert_eq!(far.count(Command::Read(keys("near", 3))), 0);
    assert_eq!(near.stats().regions, 1);
}

#[test]
fn a_short_cut_costs_nothing_but_time() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let other = cluster.host("other");
    let (mut near, mut far) = near_and_far(&cluster, &other);
    other.unplug().unwrap();
    // What needs no server goes on, and what does waits for it.
    assert_eq!(far.call(Command::CheckHeld), Reply::Done);
    assert_eq!(far.call(Command::HoldPage), Reply::Done);
    far.send(&Command::Read(keys("near", 3)));
    std::thread::sleep(Duration::from_millis(500));
    assert_far_has_its_own(&mut near);
    other.plug_in().unwrap();
    assert_eq!(far.reply(), Some(Reply::Count(3)));
    assert_far_has_its_own(&mut near);
    assert_both_are_served(&mut near, &mut far);
}

/// A cable is pulled that the client's host sees the end of, or one behind which everything vanishes without a sign.
#[test]
fn calls_that_a_cut_outlasts_end_in_their_time_and_do_no_harm() {
    let Some(cluster) = Cluster::start(&[]) else { return };
    let other = cluster.host("other");
    let mut near = neighbour(&cluster, "near");
    assert_eq!(near.each(Command::Store(keys("near", 3), PAGE)), ["stored"; 3]);
    let mut far = ClientProcess::start_on(&other);
    let config = ClientConfig { timeout: Duration::from_millis(300), ..cluster.config("far") };
    assert_eq!(far.call(Command::Connect(config)), Reply::Done);
    assert_eq!(far.each(Command::Store(keys("far", 3), PAGE)), ["stored"; 3]);
    let pages = far.count(Command::FreePages) + 3;

    for (round, cable) in ["first", "second"].into_iter().zip([&other, &cluster.host]) {
        cable.unplug().unwrap();
        let mut newcomer = ClientProcess::start_on(&other);
        newcomer.send(&Command::Connect(cluster.config("newcomer")));
        let mut told = vec![
            far.refused(Command::Read(keys("near", 3))),
            far.refused(Command::Exists(keys("near", 3))),
            far.refused(Command::Stats),
        ];
        told.extend(far.each(Command::Store(keys(round, 1), PAGE)));
        for told in told {
            assert!(told.contains("did not answer") || told == Error::ConnectionLost.to_string(), "{told}");
        }
        let refused = newcomer.reply().and_then(Reply::failed).unwrap();
        assert!(refused.contains("can't connect to tcp://"), "{refused}");

        cable.plug_in().unwrap();
        wait_until_it_goes_on(&mut far);
        wait_until("nothing stays pinned", || near.stats().pins == 0);
        // Whether a chunk was stored whose store had no answer, both know.
        wait_until("no page is lost", || {
            let entries = usize::try_from(near.stats().entries).unwrap();
            far.count(Command::FreePages) + entries - 3 == pages
        });
        assert_eq!(near.count(Command::Read(keys("far", 3))), 3);
    }
}

/// Has the server give up who is silent, long before it would notice by itself that nobody is there.
const IMPATIENT: [&str; 2] = ["--idle-timeout", "1s"];

#[test]
fn who_comes_back_within_the_grace_has_lost_nothing() {
    let Some(cluster) = Cluster::start(&[&IMPATIENT[..], &["--grace", "60s"]].concat()) else { return };
    let other = cluster.host("other");
    let (mut near, mut far) = near_and_far(&cluster, &other);
    other.unplug().unwrap();
    wait_until("the server has given the far one up", || near.stats().connections == 1);
    assert_far_has_its_own(&mut near);
    assert_eq!(far.call(Command::CheckHeld), Reply::Done);
    other.plug_in().unwrap();
    wait_until_it_goes_on(&mut far);
    assert_eq!(far.each(Command::ReadHeld), ["intact"; 3]);
    assert_far_has_its_own(&mut near);
    assert_both_are_served(&mut near, &mut far);
}

#[test]
fn who_comes_back_after_the_grace_is_told_so_and_connects_anew() {
    let Some(cluster) = Cluster::start(&[&IMPATIENT[..], &["--grace", "2s"]].concat()) else { return };
    let other = cluster.host("other");
    let (mut near, mut far) = near_and_far(&cluster, &other);
    other.unplug().unwrap();
    wait_until("its session has ended", || near.stats().instances == 1);
    let stats = near.stats();
    assert_eq!((stats.pins, stats.regions, stats.orphans), (0, 2, 1));
    assert_eq!(near.count(Command::Read(keys("far", 3))), 3, "what it has stored stays");
    assert_eq!(near.each(Command::Delete(keys("near", 3))), ["deleted"; 3]);
    assert_eq!(near.each(Command::Store(keys("other", 3), PAGE)), ["stored"; 3], "in the same pages");
    // The cable is out: nobody has told it anything.
    assert_eq!(far.each(Command::ReadHeld), ["in doubt"; 3]);

    other.plug_in().unwrap();
    wait_until("it is told so", || {
        far.refused(Command::Read(keys("far", 3))) == Error::SessionEnded.to_string()
    });
    assert_eq!(far.each(Command::ReadHeld), ["released"; 3]);
    let stored = far.each(Command::Store(keys("later", 1), PAGE));
    assert_eq!(stored, [Error::SessionEnded.to_string()]);
    drop(far);
    let mut far = cluster.connect(&other, "far again");
    assert_both_are_served(&mut near, &mut far);
}

#[test]
fn a_server_that_was_killed_is_found_again_by_clients_of_other_hosts() {
    let Some(mut cluster) = Cluster::start(&[]) else { return };
    let other = cluster.host("other");
    let (mut near, mut far) = near_and_far(&cluster, &other);
    for _ in 0..3 {
        cluster.kill_and_restart_server();
        wait_until_it_goes_on(&mut near);
        wait_until_it_goes_on(&mut far);
        assert_far_has_its_own(&mut near);
    }
    assert_both_are_served(&mut near, &mut far);
}

#[test]
fn a_server_that_was_killed_behind_a_cut_waits_for_those_who_may_be_reading() {
    let Some(mut cluster) = Cluster::start(&[]) else { return };
    let other = cluster.host("other");
    let (mut near, mut far) = near_and_far(&cluster, &other);
    other.unplug().unwrap();
    cluster.kill_and_restart_server();
    wait_until_it_goes_on(&mut near);
    assert_eq!(near.each(Command::Delete(keys("near", 3))), ["pinned"; 3]);
    assert_eq!(far.call(Command::CheckHeld), Reply::Done);
    other.plug_in().unwrap();
    wait_until_it_goes_on(&mut far);
    assert_far_has_its_own(&mut near);
    assert_both_are_served(&mut near, &mut far);
}

/// Takes the 14 seconds for which the server waits for a sign of life.
#[test]
fn hosts_that_are_gone_without_a_word_are_noticed() {
    let Some(cluster) = Cluster::start(&["--grace", "1s"]) else { return };
    let [dark, cut] = ["dark", "cut"].map(|name| cluster.host(name));
    let (mut near, _dead) = near_and_far(&cluster, &dark);
    let mut far = cluster.connect(&cut, "cut");
    assert_eq!(far.each(Command::Store(keys("cut", 3), PAGE)), ["stored"; 3]);
    assert_eq!(far.count(Command::Acquire(keys("near", 3))), 3);

    dark.power_off().unwrap();
    cut.unplug().unwrap();
    let began = Instant::now();
    wait_until("both sessions have ended", || near.stats().instances == 1);
    // Not by a word that came through after all.
    assert!(began.elapsed() > Duration::from_secs(2));
    let stats = near.stats();
    assert_eq!((stats.pins, stats.regions, stats.orphans), (0, 3, 2));
    assert_eq!(near.count(Command::Read([keys("far", 3), keys("cut", 3)].concat())), 6);
    assert_eq!(near.each(Command::Delete(keys("near", 3))), ["deleted"; 3]);

    cut.plug_in().unwrap();
    wait_until("who comes back is told so", || {
        far.refused(Command::Read(keys("cut", 3))) == Error::SessionEnded.to_string()
    });
}
