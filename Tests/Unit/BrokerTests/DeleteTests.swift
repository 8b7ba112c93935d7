import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import Testing
import WorkerProtocol

@testable import ubd_broker

@Suite("Deleting a device")
struct DeleteTests {
    @Test("the worker serves until STOP_DEV is done")
    func stopsFirst() throws {
        let host = try Host()
        _ = try host.add().get()
        var killedBeforeStop = true
        host.kernel.beforeAnswer[.stopDevice] = { killedBeforeStop = host.workers[0].signals.contains("KILL") }
        #expect(try host.delete(0) == nil)
        #expect(!killedBeforeStop)
        #expect(host.leftovers == [])
    }

    @Test("by force the worker goes first")
    func killsFirst() throws {
        let host = try Host()
        _ = try host.add().get()
        var killedBeforeStop = false
        host.kernel.beforeAnswer[.stopDevice] = { killedBeforeStop = host.workers[0].hasEnded }
        #expect(try host.delete(0, force: true) == nil)
        #expect(killedBeforeStop)
        #expect(host.leftovers == [])
    }

    @Test("a device in use is refused with the name of its holder, and serves on")
    func refusesBusy() throws {
        let host = try Host()
        _ = try host.add().get()
        host.holding = .held("mounted on /mnt")
        guard case .busy(let message, _, _, let holder) = try host.delete(0) else {
            Issue.record("not busy")
            return
        }
        #expect(message.hasSuffix("is mounted on /mnt"))
        #expect(holder == "mounted on /mnt")
        #expect(host.broker.devices[0]?.info.state == .live)
        #expect(try host.delete(0, force: true) == nil)
    }

    @Test(
        "a device of which nobody can tell whether it is in use is refused, with the reason and what to do, and serves on"
    )
    func refusesUnknown() throws {
        let host = try Host()
        _ = try host.add().get()
        host.holding = .unknown("read /proc/swaps: Too many open files")
        guard case .busy(let message, let remedy, _, let holder)? = try host.delete(0) else {
            Issue.record("not refused")
            return
        }
        #expect(message.hasSuffix("is in use can not be told: read /proc/swaps: Too many open files"))
        #expect(remedy.contains("--force") && holder == BrokerAPI.holderUnknown)
        #expect(host.broker.devices[0]?.info.state == .live && host.broker.devices[0]?.deletion == nil)
        #expect(try host.delete(0, force: true) == nil)
        #expect(host.leftovers == [])
    }

    @Test("of deletions at once one is done, the others are told of it", arguments: [false, true])
    func atOnce(_ safeStop: Bool) throws {
        let host = try Host()
        if safeStop { host.kernel.features = [.safeStop] }
        _ = try host.add().get()
        var ends: [String] = []
        for _ in 0..<4 {
            host.broker.delete(DeleteRequest(id: 0), peer: Host.alice) { ends.append($0?.name ?? "done") }
        }
        try host.run { ends.count == 4 }
        #expect(ends.sorted() == ["done"] + [String](repeating: "io.ubd.Broker.Busy", count: 3), "\(ends)")
        #expect(host.leftovers == [])
    }

    @Test("a deletion by force overtakes one that asks who uses the device, and both hear of its end")
    func overtakesQuestion() throws {
        let host = try Host()
        _ = try host.add().get()
        var ends: [InterfaceError?] = []
        host.holding = .held("mounted on /mnt")
        host.whileAsked = {
            host.whileAsked = nil
            host.broker.delete(DeleteRequest(id: 0, force: true), peer: Host.alice) { ends.append($0) }
        }
        host.broker.delete(DeleteRequest(id: 0), peer: Host.alice) { ends.append($0) }
        try host.run { ends.count == 2 }
        #expect(ends == [nil, nil])
        #expect(host.leftovers == [])
    }

    @Test("a device whose worker dies while that is asked is recovered, not deleted")
    func diesWhileAsked() throws {
        let host = try Host()
        _ = try host.add().get()
        host.whileAsked = {
            host.whileAsked = nil
            host.kernel.quiesce(0)
            host.workers[0].die(.killed(signal: SIGKILL))
        }
        #expect(try host.delete(0)?.message.contains("getting a new worker") == true)
        try host.run { host.broker.devices[0]?.info.state == .live && host.workers.count == 2 }
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }

    @Test("after TRY_STOP_DEV only success and \"no such device\" go on", arguments: ControlVerdictTests.errnos)
    func triesOnlyWhatIsSure(_ errno: Int32) throws {
        let host = try Host()
        host.kernel.features = [.safeStop]
        _ = try host.add().get()
        host.kernel.failures[.tryStopDevice] = errno
        let error = try host.delete(0)
        if errno == ENODEV {
            #expect(error == nil)
        } else {
            #expect(error?.name == "io.ubd.Broker.Busy", "\(SystemError.name(errno))")
            #expect(host.broker.devices[0]?.info.state == .live)
            #expect(!host.kernel.log.contains("stopDevice 0"))
            host.kernel.failures = [:]
            #expect(try host.delete(0) == nil)
        }
        #expect(host.leftovers == [])
    }

    @Test("where the kernel says that it is open and the host's tables know by whom, that is told at once")
    func namesHolder() throws {
        let host = try Host()
        host.kernel.features = [.safeStop]
        _ = try host.add().get()
        host.kernel.failures[.tryStopDevice] = EBUSY
        host.holding = .held("mounted on /mnt")
        #expect(try host.delete(0)?.message.hasSuffix("is mounted on /mnt") == true)
        #expect(host.kernel.log.filter { $0 == "tryStopDevice 0" }.count == 1)
        host.holding = .unknown("no")
        guard case .busy(_, _, _, BrokerAPI.openSomewhere)? = try host.delete(0) else {
            Issue.record("the kernel's word counts")
            return
        }
    }

    @Test(
        "STOP_DEV is sent again until the kernel has stopped the disk, whatever it answers",
        arguments: [EINTR, EBUSY, ENOMEM, EPERM, EOPNOTSUPP])
    func stopsForSure(_ errno: Int32) throws {
        let host = try Host()
        _ = try host.add().get()
        host.kernel.failures[.stopDevice] = errno
        var tries = 0
        host.kernel.beforeAnswer[.stopDevice] = {
            tries += 1
            #expect(!host.kernel.log.contains("deleteDeviceAsync 0"))
            if tries == 3 { host.kernel.failures[.stopDevice] = nil }
        }
        #expect(try host.delete(0) == nil)
        #expect(tries == 3)
        #expect(host.leftovers == [])
    }

    @Test("where the kernel knows whether it is open, the kernel is asked, more than once")
    func triesToStop() throws {
        let host = try Host()
        host.kernel.features = [.safeStop]
        _ = try host.add().get()
        host.kernel.failures[.tryStopDevice] = EBUSY
        #expect(try host.delete(0)?.name == "io.ubd.Broker.Busy")
        #expect(host.kernel.log.filter { $0 == "tryStopDevice 0" }.count == 10)
        #expect(host.broker.devices[0]?.info.state == .live)
        host.kernel.failures = [:]
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }

    @Test("a worker that dies while the kernel is asked is replaced all the same")
    func deathMeanwhile() throws {
        let host = try Host()
        host.kernel.features = [.safeStop]
        _ = try host.add().get()
        host.kernel.failures[.tryStopDevice] = EBUSY
        host.kernel.beforeAnswer[.tryStopDevice] = {
            host.kernel.quiesce(0)
            host.workers[0].die(.killed(signal: SIGKILL))
        }
        #expect(try host.delete(0)?.name == "io.ubd.Broker.Busy")
        try host.run { host.broker.devices[0]?.info.state == .live && host.workers.count == 2 }
        #expect(host.broker.devices[0]?.info.deaths == 1)
    }

    @Test(
        "force overtakes a deletion that hangs on the worker, and both clients hear of its end",
        arguments: [UblkControlOperation.tryStopDevice, .stopDevice])
    func overtakes(_ hanging: UblkControlOperation) throws {
        let host = try Host()
        host.kernel.features = [.safeStop]
        _ = try host.add().get()
        host.kernel.hangsUntil[hanging] = { host.workers[0].hasEnded }
        var first: [InterfaceError?] = []
        host.broker.delete(DeleteRequest(id: 0), peer: Host.alice) { first.append($0) }
        try host.run { host.kernel.log.contains("\(hanging) 0") }
        #expect(try host.delete(0)?.message.contains("being deleted already") == true)
        #expect(!host.workers[0].hasEnded)
        #expect(try host.delete(0, force: true) == nil)
        try host.run { !first.isEmpty }
        #expect(first == [nil])
        #expect(host.leftovers == [])
    }

    @Test(
        "force tells within 6 seconds what a STOP_DEV waits for that outlasts the worker, and the device goes when it ends",
        arguments: [[UblkFeatures.perIODaemon], []] as [UblkFeatures])
    func tellsWhatStopWaitsFor(_ features: UblkFeatures) throws {
        let host = try Host()
        host.kernel.features = features
        _ = try host.add(AddRequest(target: "null", recovery: "none")).get()
        var ends = false
        host.kernel.hangsUntil[.stopDevice] = { ends }
        let began = monotonicNanoseconds()
        let error = try host.delete(0, force: true)
        #expect(monotonicNanoseconds() - began < 8_000_000_000)
        #expect(error?.message.contains("requests that its dead worker had taken") == true)
        #expect(error?.message.contains("has not noticed") == features.isEmpty)
        #expect(error?.message.contains("can not be killed") == false)
        ends = true
        try host.run { host.broker.devices.isEmpty }
        #expect(host.leftovers == [])
    }

    @Test("by force STOP_DEV is sent when the kernel has released the dead worker, not while it does so")
    func stopsAfterRelease() throws {
        let host = try Host()
        host.kernel.features = [.perIODaemon]
        _ = try host.add().get()
        var (looks, states): (Int, [UInt16?]) = (0, [])
        host.kernel.beforeAnswer[.getDeviceInfo] = {
            looks += 1
            if looks == 3 { host.kernel.quiesce(0) }
        }
        host.kernel.beforeAnswer[.stopDevice] = { states.append(host.kernel.state(of: 0)) }
        #expect(try host.delete(0, force: true) == nil)
        #expect(looks == 3 && states == [UblkDeviceState.quiesced.rawValue], "\(looks), \(states)")
        #expect(host.leftovers == [])
    }

    @Test("by force STOP_DEV waits for the release of a replacement that is dead, too, which the state does not tell")
    func stopsAfterReplacement() throws {
        let host = try Host()
        host.kernel.features = [.perIODaemon]
        _ = try host.add().get()
        host.kernel.quiesce(0)
        var asked = 0
        host.kernel.beforeAnswer[.startUserRecovery] = {
            asked += 1
            host.kernel.failures[.startUserRecovery] = asked < 4 ? EBUSY : nil
        }
        var before = 0
        host.kernel.beforeAnswer[.stopDevice] = { before = asked }
        #expect(try host.delete(0, force: true) == nil)
        #expect(before == 4)
        #expect(host.leftovers == [])
    }

    @Test(
        "a device that the kernel never releases, or of which it does not tell, is stopped nevertheless",
        arguments: [[:], [.getDeviceInfo: EBUSY]] as [[UblkControlOperation: Int32]], [false, true])
    func stopsWithoutRelease(_ failures: [UblkControlOperation: Int32], _ isUnknown: Bool) throws {
        let host = try Host()
        host.kernel.features = [.perIODaemon]
        _ = try host.add().get()
        host.kernel.failures = failures
        if isUnknown { host.kernel.becomeUnknown(0) }
        #expect(try host.delete(0, force: true) == nil)
        #expect(host.kernel.log.filter { $0 == "getDeviceInfo 0" }.count > 2)
        #expect(host.leftovers == [])
    }

    @Test("a device in use is not taken away because its worker is dead")
    func refusesBusyWithoutWorker() throws {
        let host = try Host()
        _ = try host.add(AddRequest(target: "null", recovery: "none")).get()
        host.workers[0].die(.killed(signal: SIGSEGV))
        try host.run { host.broker.devices[0]?.worker == nil }
        host.holding = .held("mounted on /mnt")
        #expect(try host.delete(0)?.name == "io.ubd.Broker.Busy")
        host.holding = .free
        #expect(try host.delete(0) == nil)
    }

    @Test("somebody else's device does not exist for a user; for root it does")
    func hidesForeign() throws {
        let host = try Host()
        _ = try host.add().get()
        #expect(try host.delete(0, as: Host.bob)?.name == "io.ubd.Broker.NoSuchDevice")
        #expect(try host.list(ListRequest(), peer: Host.bob).devices.isEmpty)
        let root = PeerCredentials(pid: 1, uid: 0, gid: 0, groups: [])
        #expect(try host.list(ListRequest(), peer: root).devices.count == 1)
        #expect(try host.delete(0, as: root) == nil)
    }

    @Test("a worker that can't be killed makes its device stuck: no STOP, no DEL, until it is dead")
    func staysStuck() throws {
        let host = try Host()
        _ = try host.add().get()
        host.workers[0].survivesKill = true
        let before = host.kernel.log.count
        #expect(try host.delete(0, force: true)?.message.contains("stuck") == true)
        #expect(host.broker.devices[0]?.info.state == .stuck)
        #expect(host.kernel.log.count == before)
        // Other devices are not affected.
        #expect(try host.add(as: Host.bob).get().0.state == .live)
        host.workers[0].die(.killed(signal: SIGKILL))
        try host.run { host.broker.devices[0] == nil }
        #expect(host.kernel.devices[0] == nil)
    }

    @Test("without recovery, a worker that dies leaves a failed device with its reason, which can be deleted")
    func failsWhenWorkerDies() throws {
        let host = try Host()
        _ = try host.add(AddRequest(target: "null", recovery: "none")).get()
        host.workers[0].die(.killed(signal: SIGSEGV))
        #expect(host.broker.devices[0]?.info.state == .failed)
        #expect(host.broker.devices[0]?.info.reason?.contains("SIGSEGV") == true)
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }

    @Test("a number that another server got while the kernel would not delete ours is not deleted again")
    func sparesSuccessor() throws {
        let host = try Host()
        _ = try host.add().get()
        host.kernel.failures[.deleteDeviceAsync] = EIO
        host.kernel.beforeAnswer[.deleteDeviceAsync] = {
            host.loop.after(milliseconds: 10) {
                host.kernel.failures = [:]
                host.kernel.forget(0)
                host.kernel.addForeignDevice(0)
            }
        }
        #expect(try host.delete(0) == nil)
        #expect(host.kernel.devices[0] != nil)
        #expect(host.kernel.log.filter { $0 == "deleteDeviceAsync 0" }.count == 1)
        #expect(host.broker.devices.isEmpty)
    }

    @Test("before 6.7 it is done by the command that there is")
    func deletesWaiting() throws {
        let host = try Host()
        host.kernel.failures[.deleteDeviceAsync] = EOPNOTSUPP
        _ = try host.add().get()
        #expect(try host.delete(0) == nil)
        #expect(host.kernel.log.last == "deleteDevice 0")
        #expect(host.leftovers == [])
    }

    @Test("a stale generation deletes nothing")
    func checksGeneration() throws {
        let host = try Host()
        let (device, _) = try host.add().get()
        var result: InterfaceError?
        host.broker.delete(DeleteRequest(id: 0, generation: device.generation ^ 1), peer: Host.alice) { result = $0 }
        #expect(result?.name == "io.ubd.Broker.NoSuchDevice")
        #expect(host.broker.devices[0]?.info.state == .live)
    }
}
