import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import Testing

@testable import ubd_broker

@Suite("Recovering a device whose worker died")
struct RecoverTests {
    /// A host with one live device, whose worker has just died.
    private func hostAfterDeath(features: UblkFeatures = [.perIODaemon]) throws -> Host {
        let host = try Host()
        host.kernel.features = features
        _ = try host.add().get()
        host.kernel.quiesce(0)
        host.workers[0].die(.killed(signal: SIGSEGV))
        return host
    }

    private func info(_ host: Host) -> Device? { host.broker.devices[0]?.info }

    @Test("a new worker takes over, with another uid, stopped while the kernel is told")
    func replaces() throws {
        let host = try hostAfterDeath()
        #expect(info(host)?.state == .recovering)
        #expect(info(host)?.reason?.contains("SIGSEGV") == true)
        var signalsAtEnd: [String] = []
        host.kernel.beforeAnswer[.endUserRecovery] = { signalsAtEnd = host.workers[1].signals }
        try host.run { self.info(host)?.state == .live }
        #expect(signalsAtEnd == ["STOP"])
        #expect(host.workers.count == 2)
        #expect(host.workers[0].uid != host.workers[1].uid)
        #expect(info(host)?.deaths == 1)
        #expect(info(host)?.lastDeath == "was killed by SIGSEGV")
        #expect(info(host)?.reason == nil)
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }

    @Test("the kernel is asked again until it has let go of the dead worker")
    func waitsForKernel() throws {
        let host = try Host()
        host.kernel.features = [.perIODaemon]
        _ = try host.add().get()
        host.workers[0].die(.killed(signal: SIGKILL))
        var asked = 0
        host.kernel.beforeAnswer[.getDeviceInfo] = {
            asked += 1
            if asked == 5 { host.kernel.quiesce(0) }
        }
        try host.run { self.info(host)?.state == .live }
        #expect(asked == 5)
    }

    @Test("what hangs counts when a file is brought again, as when a device is added")
    func countsWhatHangs() throws {
        let host = try Host(policy: "allow group=50 target=* max-devices=3 max-memory=1G\n")
        _ = try host.add().get()
        let device = try #require(host.broker.devices[0])
        func limit(_ peer: PeerCredentials) -> String? {
            guard case .quotaReached(_, _, let limit, _, _)? = host.broker.permitStart(for: device, "recover", peer)
            else {
                return nil
            }
            return limit
        }
        let lingering = try (0..<3).map { _ in try LingeringSocket() }
        for (index, socket) in lingering.enumerated() {
            #expect(limit(Host.alice) == nil, "\(index)")
            let pair = try makeMessagePair()
            try socket.move(into: pair.first.raw)
            host.broker.undertaker.letGo(pair.second, owner: Host.alice.uid)
        }
        #expect(limit(Host.alice) == "max-devices")
        guard case .failure(.quotaReached(_, _, "max-devices", 3, _)) = try host.add() else {
            Issue.record("added")
            return
        }
        #expect(limit(Host.bob) == nil)
        #expect(limit(Host.root) == nil)
        // The buffers of a worker that can't be killed.
        host.broker.stuckRehearsals[ObjectIdentifier(host)] = (Host.bob.uid, 1 << 30)
        #expect(limit(Host.bob) == nil)
        host.broker.stuckRehearsals[ObjectIdentifier(host)] = (Host.bob.uid, (1 << 30) + 1)
        #expect(limit(Host.bob) == "max-memory")
        host.broker.stuckRehearsals = [:]
        #expect(limit(Host.bob) == nil)
    }

    @Test("however long it waits for that, START_USER_RECOVERY still has its own 10 seconds of EBUSY")
    func countsAnew() throws {
        let host = try Host()
        host.kernel.features = []
        _ = try host.add().get()
        host.workers[0].die(.killed(signal: SIGKILL))
        var looks = 0
        host.kernel.beforeAnswer[.getDeviceInfo] = {
            looks += 1
            // The first query begins the wait; then the disk hangs for a minute.
            if looks == 2 { host.clockAdvance = 60_000_000_000 }
            if looks == 4 { host.kernel.quiesce(0) }
        }
        var tries = 0
        host.kernel.failures[.startUserRecovery] = EBUSY
        host.kernel.beforeAnswer[.startUserRecovery] = {
            tries += 1
            if tries == 3 { host.kernel.failures[.startUserRecovery] = nil }
        }
        try host.run { [.live, .failed].contains(self.info(host)?.state) }
        #expect(info(host)?.state == .live)
        #expect(looks == 4 && tries == 3)
    }

    @Test("EBUSY for longer than 10 seconds is the end")
    func givesUpOnBusy() throws {
        let host = try hostAfterDeath()
        host.kernel.failures[.startUserRecovery] = EBUSY
        var tries = 0
        host.kernel.beforeAnswer[.startUserRecovery] = {
            tries += 1
            if tries == 3 { host.clockAdvance = 11_000_000_000 }
        }
        try host.run { self.info(host)?.state == .failed }
        // Before the disk is stopped it is asked once more whether the worker is released.
        #expect([3, 4].contains(tries))
        #expect(info(host)?.reason?.contains("stay open") == true)
    }

    @Test(
        "START_USER_RECOVERY that the kernel had no memory for, or that ends without an answer, is sent again",
        arguments: [ENOMEM, EAGAIN, EINTR], [[], [.perIODaemon]] as [UblkFeatures])
    func sendsAgain(_ errno: Int32, _ features: UblkFeatures) throws {
        let host = try hostAfterDeath(features: features)
        host.kernel.failures[.startUserRecovery] = errno
        var tries = 0
        host.kernel.beforeAnswer[.startUserRecovery] = {
            tries += 1
            guard tries == 3 else { return }
            // Before 6.16, the interrupted one was done, and the kernel says so.
            host.kernel.failures[.startUserRecovery] = errno == EINTR && features.isEmpty ? EINVAL : nil
        }
        try host.run { [.live, .failed].contains(self.info(host)?.state) }
        #expect(info(host)?.state == .live && tries == 3)
        #expect(host.workers.count == 2)
    }

    @Test("START_USER_RECOVERY that is never answered for longer than 10 seconds is the end")
    func givesUpUnanswered() throws {
        let host = try hostAfterDeath()
        host.kernel.failures[.startUserRecovery] = EINTR
        var tries = 0
        host.kernel.beforeAnswer[.startUserRecovery] = {
            tries += 1
            if tries == 3 { host.clockAdvance = 11_000_000_000 }
        }
        try host.run { self.info(host)?.state == .failed }
        #expect(info(host)?.reason?.contains("does not do START_USER_RECOVERY") == true)
        #expect(host.workers.count == 1)
    }

    @Test("before 6.16 a second START_USER_RECOVERY is never sent for one death, and a second failure is the end")
    func sendsOnce() throws {
        let host = try hostAfterDeath(features: [])
        host.fault = .diesAfterGeometry
        try host.run { self.info(host)?.state == .failed }
        #expect(host.kernel.log.filter { $0 == "startUserRecovery 0" }.count == 1)
        #expect(host.workers.count == 3)
        #expect(host.kernel.log.last == "stopDevice 0")
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }

    @Test("before 6.16 not even a replacement that said that it was sealed makes it be sent again")
    func believesNoWorker() throws {
        let host = try hostAfterDeath(features: [])
        host.fault = .diesWhenSealed
        try host.run { self.info(host)?.state == .failed }
        #expect(host.kernel.log.filter { $0 == "startUserRecovery 0" }.count == 1)
    }

    @Test("before 6.16 a replacement that dies when the kernel has accepted it is a death of its own, which is mended")
    func diesWhenAccepted() throws {
        let host = try hostAfterDeath(features: [])
        host.kernel.beforeAnswer[.endUserRecovery] = {
            host.kernel.beforeAnswer = [:]
            host.workers[1].die(.killed(signal: SIGKILL))
            host.loop.later { host.kernel.quiesce(0) }
        }
        try host.run { self.info(host)?.state == .live || self.info(host)?.state == .failed }
        #expect(info(host)?.state == .live)
        #expect(info(host)?.deaths == 2)
        #expect(host.kernel.log.filter { $0 == "startUserRecovery 0" }.count == 2)
    }

    @Test("from 6.16 on it is sent for each try")
    func sendsAgain() throws {
        let host = try hostAfterDeath()
        host.fault = .diesAfterGeometry
        try host.run { host.workers.count == 3 }
        host.fault = nil
        try host.run { self.info(host)?.state == .live }
        #expect(host.kernel.log.filter { $0 == "startUserRecovery 0" }.count >= 2)
    }

    @Test("workers that keep dying are not replaced for ever; the reason is told")
    func givesUp() throws {
        let host = try Host()
        host.kernel.features = [.perIODaemon]
        _ = try host.add().get()
        for _ in 0...DeathLog.most {
            host.kernel.quiesce(0)
            host.workers.last?.die(.killed(signal: SIGILL))
            try host.run { self.info(host)?.state != .recovering }
        }
        #expect(info(host)?.state == .failed)
        #expect(info(host)?.reason?.contains("keep dying") == true)
        try host.run { host.kernel.log.last == "stopDevice 0" }
        #expect(try host.delete(0) == nil)
        #expect(host.leftovers == [])
    }

    @Test("a replacement that makes another disk is not let in")
    func comparesDisks() throws {
        let host = try hostAfterDeath(features: [])
        host.geometry.size = 512
        try host.run { self.info(host)?.state == .failed }
        #expect(!host.kernel.log.contains("endUserRecovery 0"))
    }

    @Test("a replacement without its walls is not let in")
    func verifies() throws {
        let host = try hostAfterDeath(features: [])
        host.sandboxProblem = "task 2: Seccomp 0"
        try host.run { self.info(host)?.state == .failed }
        #expect(!host.kernel.log.contains("endUserRecovery 0"))
    }

    @Test(
        "a device that is deleted at any moment of its recovery is deleted",
        arguments: [
            UblkControlOperation.getDeviceInfo, .startUserRecovery, .endUserRecovery,
        ])
    func deletes(_ operation: UblkControlOperation) throws {
        let host = try hostAfterDeath()
        var done = false
        host.kernel.beforeAnswer[operation] = {
            host.kernel.beforeAnswer = [:]
            host.broker.delete(DeleteRequest(id: 0, force: true), peer: Host.alice) { error in
                #expect(error == nil)
                done = true
            }
        }
        try host.run { done }
        #expect(host.leftovers == [])
    }

    @Test("a mode that the kernel does not have is refused, and nothing is left")
    func refusesMode() throws {
        let host = try Host()
        host.kernel.unknownFeatures = [.userRecoveryFailIO]
        let error = #expect(throws: InterfaceError.self) {
            try host.add(AddRequest(target: "null", recovery: "fail")).get()
        }
        #expect(error?.name == "io.ubd.Broker.KernelUnsupported")
        #expect(host.leftovers == [])
    }

    @Test("the first death costs no pause, later ones ever longer ones")
    func backsOff() {
        var log = DeathLog()
        var pauses: [Int] = []
        for second in 0..<5 {
            log.add(window: 60, now: UInt64(second) * 1_000_000_000 + 1)
            pauses.append(log.pauseBeforeNext)
        }
        #expect(pauses == [0, 50, 100, 200, 400])
        log.add(window: 60, now: 200_000_000_000)
        #expect(log.pauseBeforeNext == 0)
    }

    @Test("only deaths within the window count")
    func window() {
        var log = DeathLog()
        for second in 0..<100 { log.add(window: 2, now: UInt64(second) * 1_000_000_000 + 1) }
        #expect(log.count == 3)
        #expect(!log.isTooMany)
    }
}
