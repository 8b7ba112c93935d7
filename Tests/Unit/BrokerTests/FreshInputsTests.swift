import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import Targets
import Testing
import WorkerProtocol

@testable import ubd_broker

@Suite("A device of connections")
struct FreshInputsTests {
    // MARK: Added

    @Test(
        "is asked for as many sockets as the kernel gave queues, once it has; its worker is told of that number and no other"
    )
    func asksLate() throws {
        let host = try Host()
        var counts: [Int] = []
        var result: Result<Device, InterfaceError>?
        _ = host.broker.add(NBDHost.request(queues: 4, [OptionValue("connections", "4")]), peer: Host.alice) { answer in
            switch answer {
            case .files(let count, let socket):
                #expect(host.kernel.log == ["addDevice 0"])
                counts.append(count)
                NBDHost.park(socket)
                close(socket)
            case .added(let device, let notices):
                #expect(notices.contains { $0.code == "queues" && $0.message.contains("as many connections") })
                result = .success(device)
            case .failed(let error): result = .failure(error)
            }
        }
        try host.run { result != nil }
        // The fake kernel has two processors.
        #expect(counts == [2])
        #expect(try result?.get().queues == 2)
        let told = try #require(host.workers.first?.launch)
        #expect(told.queues == 2 && told.descriptors == 2...2 && told.options.connections == nil)
        #expect(told.options.size == 1 << 20 && told.options.exportFlags == 13)
    }

    @Test("whose client sends no socket, or goes before, leaves nothing")
    func undone() throws {
        let host = try Host()
        #expect(throws: InterfaceError.self) { try host.add(NBDHost.request(), parking: { _ in }).get() }
        #expect(host.leftovers == [])
        var isOver = false
        let operation = host.broker.add(NBDHost.request(), peer: Host.alice) { answer in
            switch answer {
            case .files(_, let socket): close(socket)
            case .added: Issue.record("added")
            case .failed: isOver = true
            }
        }
        try host.run { host.kernel.log.contains("addDevice 0") }
        operation?.clientGone()
        try host.run { isOver }
        #expect(host.leftovers == [])
    }

    @Test("shows how its connections are encrypted, and nothing where they are not")
    func encrypted() throws {
        #expect(try NBDHost().info?.cipher == nil)
        let name = "TLS1.3 CHACHA20-POLY1305"
        let host = try NBDHost(NBDHost.request([OptionValue("cipher", name)]))
        #expect(host.info?.cipher == name)
        #expect(try host.host.broker.store.load().records.first?.device.cipher == name)
    }

    @Test("has a server on another host only where the access policy says so")
    func localSockets() throws {
        for (line, isLocal) in [("", true), ("nbd=local", true), ("nbd=any", false)] {
            let host = try NBDHost(policy: "allow group=50 target=* \(line)\n")
            #expect(host.host.workers[0].launch?.flags.contains(.localSockets) == isLocal, "\(line)")
        }
        // A target without connections hears nothing of them.
        let host = try Host()
        _ = try host.add().get()
        #expect(host.workers[0].launch?.flags.contains(.localSockets) == false)
    }

    @Test("has as many connections as the access policy allows, 4 where it does not say")
    func policy() throws {
        for (line, most) in [("", 4), ("connections=1", 1), ("connections=16", 16)] as [(String, Int64)] {
            let host = try Host(policy: "allow group=50 target=* \(line)\n")
            _ = try host.add(NBDHost.request(queues: most), parking: NBDHost.park).get()
            guard most < 16 else { continue }
            let error = #expect(throws: InterfaceError.self) { try host.add(NBDHost.request(queues: most + 1)).get() }
            guard case .quotaReached(let message, _, "connections", most, _)? = error else {
                Issue.record("\(String(describing: error))")
                continue
            }
            #expect(message.contains(line.isEmpty ? "without connections=" : line))
        }
        let info = try Host(policy: "allow group=50 target=nbd nbd=any\n").broker.info(for: Host.alice)
        #expect(info.limits?.connections == 4 && info.limits?.anyServer == true)
        let none = try Host(policy: "allow group=50 target=null,loop nbd=any\n").broker.info(for: Host.alice)
        #expect(none.limits?.connections == nil && none.limits?.anyServer == nil)
    }

    // MARK: A worker's end

    @Test(
        "waits for fresh ones after every end of its worker, and the kernel is asked for nothing",
        arguments: [
            (.exited(WorkerExit.connectionLost), "lost the connection to its server"),
            (.exited(WorkerExit.serverViolation), "which sent what the protocol does not allow"),
            (.killed(signal: SIGKILL), "was killed by SIGKILL"),
            (.exited(WorkerExit.ringFailed), "exited with status 3"),
        ] as [(ProcessChange, String)])
    func waits(change: ProcessChange, words: String) throws {
        let host = try NBDHost()
        let before = host.host.kernel.log
        host.end(change)
        let info = try #require(host.info)
        #expect(info.state == .recovering && info.deaths == 1)
        for part in [words, "requests wait for 300 s, and then fail", "ubd recover -n 0"] {
            #expect(info.reason?.contains(part) == true, "\(info.reason ?? "")")
        }
        #expect(info.lastDeath?.contains(words) == true)
        let device = try #require(host.device)
        #expect(device.waitsForFile && device.worker == nil)
        // Nothing of what the dead worker had is given to another.
        let hasConnections = device.parking != nil
        #expect(!hasConnections)
        #expect(host.host.kernel.log == before)
        #expect(try host.recover().get().state == .live)
        #expect(host.recoveries == 1)
        #expect(host.info?.reason == nil)
    }

    @Test("with a keeper waits for that; its owner is not told to make connections beside it")
    func keeper() throws {
        let host = try NBDHost()
        let request = MonitorRequest(ids: [0], keep: true)
        let monitor = try host.host.broker.monitor(request, peer: Host.alice, standing: .permitted, wake: {})
        host.end()
        let reason = try #require(host.info?.reason)
        #expect(reason.contains("unless its keeper (process \(Host.alice.pid)) makes a new connection"), "\(reason)")
        #expect(!reason.contains("ubd recover"))
        host.host.broker.monitors.remove(monitor)
        #expect(try host.recover().get().state == .live)
        host.end()
        #expect(host.info?.reason?.contains("unless 'ubd recover -n 0' makes a new connection") == true)
    }

    @Test("the exit statuses mean nothing for a device of a file")
    func otherTargets() throws {
        let host = try Host()
        host.kernel.features = [.perIODaemon]
        _ = try host.add().get()
        host.kernel.quiesce(0)
        host.workers[0].die(.exited(WorkerExit.connectionLost))
        try host.run { host.broker.devices[0]?.info.state == .live && host.workers.count == 2 }
        #expect(host.broker.devices[0]?.info.lastDeath == "exited with status 5")
    }

    @Test("a server that goes again and again is no reason to give the device up; workers that are killed are")
    func countsDeaths() throws {
        let host = try NBDHost(policy: "allow group=50 target=*\n")
        for _ in 0...DeathLog.most {
            host.end()
            #expect(try host.recover().get().state == .live)
        }
        #expect(host.info?.deaths == DeathLog.most + 1)
        for _ in 0..<DeathLog.most {
            host.end(.killed(signal: SIGKILL))
            #expect(try host.recover().get().state == .live)
        }
        host.end(.killed(signal: SIGKILL))
        #expect(host.info?.state == .failed)
    }

    @Test("with --recovery none it is gone with its worker")
    func noRecovery() throws {
        let host = try NBDHost(NBDHost.request(recovery: "none"))
        host.end()
        #expect(host.info?.state == .failed)
        #expect(host.info?.reason?.contains("lost the connection to its server") == true)
    }

    // MARK: Brought

    @Test("before 6.16, too, nothing is sent before a worker in a rehearsal has accepted the fresh ones")
    func rehearses() throws {
        let host = try NBDHost(features: [])
        host.end()
        host.host.kernel.beforeAnswer[.startUserRecovery] = {
            #expect(host.host.workers.map(\.isRehearsal) == [false, true])
        }
        host.host.fault = .refusesFile
        host.host.failure = WorkerFailure(.socketNotConnected)
        #expect(throws: InterfaceError.self) { try host.recover().get() }
        #expect(host.recoveries == 0 && host.device?.waitsForFile == true)
        host.host.fault = nil
        host.host.kernel.beforeAnswer[.startUserRecovery] = {
            #expect(host.host.workers.map(\.isRehearsal) == [false, true, true])
        }
        #expect(try host.recover().get().state == .live)
        #expect(host.host.workers.map(\.isRehearsal) == [false, true, true, false])
    }

    @Test(
        "before 6.16 START_USER_RECOVERY is sent once, and others are waited for, when they break before a worker has fetched"
    )
    func breaksAgain() throws {
        // Without a limit: closes of sockets count for a moment.
        let host = try NBDHost(features: [], policy: "allow group=50 target=*\n")
        host.end()
        host.host.failure = WorkerFailure(.socketNotConnected)
        // The rehearsal finds them good, and the worker that is to serve does not.
        host.host.faultOf = { $0.device == "/dev/null" ? nil : .refusesFile }
        for round in 1...3 {
            #expect(throws: InterfaceError.self) { try host.recover().get() }
            #expect(host.device?.waitsForFile == true && host.device?.recoveryAnswered == true, "\(round)")
            #expect(host.info?.reason?.contains("did not hold") == true)
        }
        host.host.faultOf = nil
        #expect(try host.recover().get().state == .live)
        #expect(host.recoveries == 1)
        // That was the end of it: the next one is another death.
        host.end()
        #expect(try host.recover().get().state == .live)
        #expect(host.recoveries == 2)
    }

    @Test("they serve the next worker too when one dies that may have fetched, and has served nobody")
    func triesAgain() throws {
        for features in [[], [.perIODaemon]] as [UblkFeatures] {
            let host = try NBDHost(features: features)
            host.end()
            var isFirst = true
            host.host.faultOf = { launch in
                guard launch.device != "/dev/null", isFirst else { return nil }
                isFirst = false
                return .diesAfterGeometry
            }
            #expect(try host.recover().get().state == .live)
            #expect(host.host.workers.map(\.isRehearsal) == [false, true, false, false])
            #expect(host.recoveries == (features.isEmpty ? 1 : 2))
        }
    }

    @Test(
        "of another export are refused by what is different, and the device waits on",
        arguments: [
            ("size", "2097152"), ("block-size", "4096"), ("export-flags", "1"), ("maximum-block", "131072"),
            ("cipher", "TLS1.3 CHACHA20-POLY1305"), ("minimum-block", "512"), ("export-flags", nil), ("size", nil),
        ] as [(String, String?)])
    func anotherExport(name: String, value: String?) throws {
        let host = try NBDHost()
        host.end()
        let log = host.host.kernel.log
        var options = NBDHost.agreed.filter { $0.name != name }
        if let value { options.append(OptionValue(name, value)) }
        let error = #expect(throws: InterfaceError.self) { try host.recover(options).get() }
        guard case .invalidOption(let message, _, name, _)? = error else {
            Issue.record("\(String(describing: error))")
            return
        }
        #expect(message.contains("another export"))
        #expect(host.device?.waitsForFile == true && host.host.kernel.log == log && host.host.workers.count == 1)
        #expect(try host.recover().get().state == .live)
    }

    @Test("that make another disk are refused by a worker that looks at them")
    func anotherDisk() throws {
        let host = try NBDHost()
        host.end()
        host.host.geometry.attributes = .readOnly
        let error = #expect(throws: InterfaceError.self) { try host.recover().get() }
        #expect(error?.message.contains("with this server") == true)
        #expect(host.device?.waitsForFile == true && host.recoveries == 0)
    }

    @Test("are its owner's alone to bring: root does not know whose server it is")
    func ownersAlone() throws {
        let host = try NBDHost()
        host.end()
        guard case .failure(.noSuchDevice) = try host.recover(as: Host.bob) else {
            Issue.record("bob may")
            return
        }
        guard case .failure(.notPermitted) = try host.recover(as: Host.root) else {
            Issue.record("root may")
            return
        }
        #expect(try host.recover().get().state == .live)
    }

    @Test("are served by the program that served before, whatever is installed meanwhile")
    func program() throws {
        let host = try NBDHost()
        let first = host.host.workers[0].binary
        host.host.broker.program = try Host.program()
        host.end()
        #expect(try host.recover().get().state == .live)
        #expect(host.host.workers.map(\.binary) == [first, first, first])
    }

    // MARK: Too late

    @Test("fails when none has come in time, and nobody waits for it any more")
    func fails() throws {
        let host = try NBDHost(NBDHost.request([OptionValue("reconnect", "60")]))
        host.end()
        #expect(host.info?.state == .recovering)
        try host.host.run { host.info?.state == .failed }
        #expect(host.info?.reason?.contains("no new connection to its server came") == true)
        try host.host.run { host.host.kernel.log.last == "stopDevice 0" }
        guard case .failure(.failed(let message, _, "state", _)) = try host.recover() else {
            Issue.record("recovered")
            return
        }
        #expect(message.contains("failed permanently"))
        #expect(try host.host.delete(0) == nil)
    }

    @Test("waits on with on-lost=wait")
    func waitsOn() throws {
        let host = try NBDHost(
            NBDHost.request([OptionValue("reconnect", "0"), OptionValue("on-lost", "wait")]))
        host.end()
        #expect(host.info?.reason?.contains("requests wait, unless 'ubd recover -n 0' makes a new connection") == true)
        var isLater = false
        host.host.loop.after(milliseconds: 100) { isLater = true }
        try host.host.run { isLater }
        #expect(host.info?.state == .recovering)
        #expect(try host.recover().get().state == .live)
    }

    @Test("does not fail while they are being brought, nor for a wait that is over")
    func justInTime() throws {
        let host = try NBDHost(NBDHost.request([OptionValue("reconnect", "100")]))
        host.end()
        var isLate = false
        var parking: Int32 = -1
        var states: [DeviceState] = []
        let operation = host.host.broker.recover(RecoverRequest(id: 0, options: NBDHost.agreed), peer: Host.alice) {
            if case .files(_, let socket) = $0 { parking = socket }
        }
        host.host.loop.after(milliseconds: 200) { isLate = true }
        try host.host.run { isLate }
        states.append(try #require(host.info).state)
        NBDHost.park(parking)
        close(parking)
        try host.host.run { host.info?.state == .live }
        // A request is completed, so the next wait has its own time.
        try host.answer()
        host.end()
        #expect(try host.recover().get().state == .live)
        isLate = false
        host.host.loop.after(milliseconds: 700) { isLate = true }
        try host.host.run { isLate }
        states.append(try #require(host.info).state)
        #expect(states == [.recovering, .live])
        withExtendedLifetime(operation) {}
    }
}
