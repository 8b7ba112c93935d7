import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import Testing
import WorkerProtocol

@testable import ubd_broker

@Suite("How a worker died")
struct DeathTests {
    private static let audit =
        "5,339,5140900,-;audit: type=1326 audit(1764140000.123:5): auid=4294967295 uid=1895825408 gid=990 "
        + "ses=4294967295 subj=unconfined pid=4711 comm=\"ubd-q0\" exe=\"/ubd-worker\" sig=31 arch=c000003e "
        + "syscall=62 compat=0 ip=0x7f0000000000 code=0x80000000"

    /// The pid of the first fake worker, and of the record above.
    private static let workerUID: UInt32 = 0x7100_0000

    @Test("the kernel's records of seccomp and of memory are understood, and nothing else is")
    func parses() {
        let seccomp = KernelLog.parse(DeathTests.audit)
        let call = KernelLog.Finding.systemCall(62, architecture: 0xC000_003E)
        #expect(seccomp == KernelLog.Record(pid: 4711, uid: DeathTests.workerUID, finding: call))
        let host = KernelLog.parse(
            "3,340,5,-;Out of memory: Killed process 12 (ubd-worker) total-vm:1kB, UID:7 pgtables:8kB oom_score_adj:0")
        #expect(host == KernelLog.Record(pid: 12, uid: 7, finding: .outOfMemory(inControlGroup: false)))
        let group = KernelLog.parse(
            "3,340,5,-;Memory cgroup out of memory: Killed process 13 (ubd-worker) total-vm:1kB, UID:8 pgtables:8kB")
        #expect(group == KernelLog.Record(pid: 13, uid: 8, finding: .outOfMemory(inControlGroup: true)))
        for line in [
            "", ";", "no record at all", "6,1,1,-;audit: type=1326 pid=x sig=31 arch=c000003e syscall=62",
            DeathTests.audit.replacing("sig=31", with: "sig=0"),
            DeathTests.audit.replacing("type=1326", with: "type=1300"),
            DeathTests.audit.replacing(" uid=1895825408", with: ""),
            "6,1,1,-;Out of memory: Killed process nobody", " SUBSYSTEM=audit",
            "3,340,5,-;Out of memory: Killed process 12 (ubd-worker) total-vm:1kB",
        ] { #expect(KernelLog.parse(line) == nil, "\(line)") }
    }

    @Test("a name that the process chose is not taken for the record's own words")
    func distrustsNames() {
        let line = DeathTests.audit.replacing("pid=4711 ", with: "").replacing("\"ubd-q0\"", with: "7069643D31")
        #expect(KernelLog.parse(line) == nil)
        let memory = KernelLog.parse(
            "3,340,5,-;Out of memory: Killed process 12 (x UID:9 pgtable) total-vm:1kB, UID:1002 pgtables:8kB")
        #expect(memory?.uid == 1002)
    }

    /// A host whose kernel writes into a file, with one live device.
    private func host(policy: String? = nil) throws -> (host: Host, log: String) {
        let path = "/tmp/ubd-kernel-log-\(getpid())-\(UInt32.random(in: 0 ... .max))"
        close(creat(path, 0o600))
        let host = try Host(policy: policy, kernelLog: KernelLog(path: path))
        host.kernel.features = [.perIODaemon]
        _ = try host.add().get()
        host.kernel.quiesce(0)
        return (host, path)
    }

    private func say(_ line: String, in path: String) {
        let file = Glibc.open(path, O_WRONLY | O_APPEND | O_CLOEXEC)
        _ = (line + "\n SUBSYSTEM=x\n").withCString { write(file, $0, strlen($0)) }
        close(file)
    }

    @Test("the system call is named as soon as the kernel's log has it, and recovery does not wait for that")
    func namesTheCall() throws {
        let (host, path) = try host()
        defer { unlink(path) }
        host.workers[0].die(.killed(signal: SIGSYS))
        #expect(host.broker.devices[0]?.info.state == .recovering)
        #expect(host.broker.devices[0]?.info.reason?.contains("type=1326") == true)
        say(DeathTests.audit, in: path)
        let wanted = "was killed by SIGSYS: its sandbox forbids the system call kill (62)"
        try host.run { host.broker.devices[0]?.info.lastDeath == wanted }
        #expect(host.broker.devices[0]?.info.lastDeath == wanted)
    }

    @Test("a failed device's reason names it, too")
    func correctsReasons() throws {
        let (host, path) = try host()
        defer { unlink(path) }
        host.broker.devices[0]?.info.recovery = .none
        host.workers[0].die(.killed(signal: SIGSYS))
        say(DeathTests.audit, in: path)
        try host.run { host.broker.devices[0]?.info.reason?.contains("kill (62)") == true }
        let reason = host.broker.devices[0]?.info.reason
        #expect(reason?.hasSuffix("; delete it and add it again") == true && reason?.contains("1326") == false)
    }

    @Test("a worker of which the log says nothing was killed by somebody")
    func saysNoMore() throws {
        let (host, path) = try host()
        defer { unlink(path) }
        host.workers[0].die(.killed(signal: SIGKILL))
        try host.run { host.broker.devices[0]?.info.state == .live }
        #expect(host.broker.devices[0]?.info.lastDeath == "was killed by SIGKILL")
    }

    @Test(
        "what the kernel says of a stranger's process that has got a dead worker's number is not said of the worker",
        arguments: [false, true])
    func strangersDeath(isTheWorkers: Bool) throws {
        let (host, path) = try host(policy: "allow uid=* target=* penalty=60\n")
        defer { unlink(path) }
        // Only the kernel's log shows how a worker of an earlier broker died.
        host.workers[0].die(.gone)
        let uid = isTheWorkers ? DeathTests.workerUID : 1002
        say(DeathTests.audit.replacing("uid=1895825408", with: "uid=\(uid)"), in: path)
        let end = monotonicNanoseconds() + 700_000_000
        try host.run { monotonicNanoseconds() > end }
        let last = host.broker.devices[0]?.info.lastDeath
        #expect(last?.contains("kill (62)") == isTheWorkers, "\(last ?? "none")")
        var isPenalty = false
        if case .failure(.quotaReached(_, _, "penalty", _, _)) = try host.add() { isPenalty = true }
        #expect(isPenalty == isTheWorkers)
    }

    @Test("a worker that the broker kills and that does not die makes its device stuck; its death ends that")
    func outlivesKill() throws {
        let host = try Host()
        host.kernel.features = [.perIODaemon]
        _ = try host.add().get()
        host.workers[0].survivesKill = true
        let device = try #require(host.broker.devices[0])
        host.broker.kill(device, because: "was killed by the watchdog")
        try host.run { device.info.state == .stuck }
        #expect(device.info.reason?.contains("does not die") == true)
        host.kernel.quiesce(0)
        host.workers[0].die(.killed(signal: SIGKILL))
        try host.run { device.info.state == .live }
        #expect(device.info.lastDeath == "was killed by the watchdog")
    }

    @Test("a device that fails its requests by itself stays; others are stopped", arguments: [true, false])
    func stays(_ byItself: Bool) throws {
        let host = try Host()
        host.kernel.features = [.perIODaemon]
        _ = try host.add(AddRequest(target: "null", recovery: byItself ? "fail" : "reissue")).get()
        for _ in 0...DeathLog.most {
            host.kernel.quiesce(0, as: byItself ? .failIO : .quiesced)
            host.workers.last?.die(.killed(signal: SIGILL))
            try host.run { host.broker.devices[0]?.info.state != .recovering }
        }
        #expect(host.broker.devices[0]?.info.state == .failed)
        try host.run { byItself ? host.kernel.log.last == "getDeviceInfo 0" : host.kernel.log.contains("stopDevice 0") }
        #expect(host.kernel.log.contains("stopDevice 0") == !byItself)
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }

    @Test("a device without recovery is stopped when the kernel has released its dead worker, not while it does so")
    func stopsAfterRelease() throws {
        let host = try Host()
        host.kernel.features = [.perIODaemon]
        _ = try host.add(AddRequest(target: "null", recovery: "none")).get()
        var (looks, states): (Int, [UInt16?]) = (0, [])
        host.kernel.beforeAnswer[.getDeviceInfo] = {
            looks += 1
            if looks == 3 { host.kernel.quiesce(0, as: .dead) }
        }
        host.kernel.beforeAnswer[.stopDevice] = { states.append(host.kernel.state(of: 0)) }
        host.workers[0].die(.killed(signal: SIGKILL))
        try host.run { !states.isEmpty }
        #expect(looks == 3 && states == [UblkDeviceState.dead.rawValue], "\(looks), \(states)")
        #expect(try host.delete(0, force: true) == nil)
        #expect(host.leftovers == [])
    }

    @Test("DEL_DEV is not sent before STOP_DEV has ended, however late it is")
    func waitsForStop() throws {
        let host = try Host()
        _ = try host.add().get()
        var mayEnd = false
        host.kernel.hangsUntil[.stopDevice] = { mayEnd }
        var isOver = false
        host.broker.delete(DeleteRequest(id: 0, force: true), peer: Host.alice) { _ in isOver = true }
        try host.run { host.kernel.log.contains("stopDevice 0") }
        // Other devices get their workers meanwhile.
        #expect(try host.add(as: Host.bob).get().0.id == 1)
        #expect(!host.kernel.log.contains("deleteDeviceAsync 0"))
        mayEnd = true
        try host.run { isOver }
        #expect(host.kernel.log.contains("deleteDeviceAsync 0"))
    }
}
