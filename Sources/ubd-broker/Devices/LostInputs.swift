import BrokerInterface
import Glibc
import SystemCalls
import Targets
import WorkerProtocol

/// Milliseconds between two checks of a device whose time is over, while its owner is bringing connections.
private let grace = 500

/// Devices whose next worker needs inputs that only the owner can bring. Until then their requests wait in the kernel, and the
/// broker sends the kernel no command for them.
extension Broker {
    /// Lets the device wait for its owner. Its worker is dead, or dying. The broker lets go of parked inputs, because no other
    /// worker may have them. `cause` is the beginning of the reason.
    func awaitInputs(_ device: ManagedDevice, because cause: String) {
        unstoreInputs(of: device)
        device.parked = nil
        if let parking = device.parking.take() { undertaker.letGo(parking, owner: device.owner) }
        // Nobody has locked bytes that the kernel's disk does not have, or looked whose they are.
        device.forgetUntoldSize()
        device.step = .recovering
        if device.needsFreshInputs { device.serverWait.lost(now: now(), committed: device.committed) }
        let remedy = device.remedyForLostInputs(keeper: monitors.keeper(of: device))
        device.setState(.recovering, reason: "\(cause); \(remedy)")
        save(device)
        if device.needsFreshInputs {
            Log.warning(
                "connections-lost", ("device", "\(device.id)"), ("owner", "\(device.owner)"), ("why", cause))
            limitWait(of: device)
        } else {
            Log.error("files-lost", ("device", "\(device.id)"), ("owner", "\(device.owner)"), ("why", cause))
        }
    }

    /// The same after an upgrade that could not keep the connections; the result is its end.
    func awaitInputsAfterUpgrade(_ device: ManagedDevice) -> InterfaceError {
        let reason = "its worker was replaced before its server had answered all"
        release(device)
        awaitInputs(device, because: reason)
        return .failed(
            message: "device \(device.id) waits for new connections: \(reason)",
            remedy: monitors.keeper(of: device).map { "its keeper (process \($0)) makes them" }
                ?? "make them with 'ubd recover -n \(device.id)'", step: "drain", errno: nil)
    }

    /// Sets the alarm for the end of the device's patience. An alarm that is set is early enough: no later wait ends before it.
    private func limitWait(of device: ManagedDevice) {
        guard let limit = device.patience, let began = device.serverWait.began, !device.serverWait.isTimed else {
            return
        }
        let (now, end) = (now(), began + limit * 1_000_000)
        setAlarm(of: device, milliseconds: end > now ? Int(clamping: (end - now) / 1_000_000) + 1 : 0)
    }

    private func setAlarm(of device: ManagedDevice, milliseconds: Int) {
        device.serverWait.isTimed = true
        loop.after(milliseconds: milliseconds) { [weak self, weak device] in
            guard let self, let device else { return }
            device.serverWait.isTimed = false
            self.endWait(of: device)
        }
    }

    /// The patience may be over: then the device fails. One that serves meanwhile does not: its server may only be slow. When it
    /// loses these connections, too, without an answer, its time is over at once.
    private func endWait(of device: ManagedDevice) {
        guard devices[device.id] === device, device.teardown == nil, device.waitsForFile,
            let limit = device.patience, let began = device.serverWait.began
        else { return }
        if now() < began + limit * 1_000_000 { return limitWait(of: device) }
        // Connections are there and may be good.
        if device.reopening != nil { return setAlarm(of: device, milliseconds: grace) }
        let what =
            device.serverWait.unanswered > 0 ? "its server answered no request" : "no new connection to its server came"
        fail(device, because: "\(what) within \(limit / 1000) s (--reconnect); delete it and add it again")
    }

    /// A worker begins to serve, perhaps over new connections.
    func noteServing(_ device: ManagedDevice) {
        device.serverWait.served(now: now(), committed: device.committed)
    }

    /// Looks whether the server of a live device answers again. `inFlight` is the kernel's number of requests.
    func lookAtWait(of device: ManagedDevice, inFlight: Int) {
        if device.serverWait.look(now: now(), committed: device.committed, inFlight: inFlight) { save(device) }
    }
}

extension ManagedDevice {
    /// Each of its workers needs inputs that no other worker has used.
    var needsFreshInputs: Bool { launch?.target.needsFreshInputs ?? false }

    /// Its inputs are connections to a server, not files.
    var hasServer: Bool { launch?.target.takesSockets ?? false }

    /// Its inputs are memory that nobody but the broker's parking socket and its workers has, unless its client kept it.
    var isInMemory: Bool { launch?.target.isInMemory ?? false }

    /// Its inputs have no name by which they could be opened again.
    var isDisposable: Bool { isInMemory || launch?.target.hasBlockMap == true }

    /// The source of its data, for messages: "its file", "its server" or "its memory".
    var source: String { hasServer ? "its server" : isInMemory ? "its memory" : "its file" }

    /// Milliseconds that requests wait for fresh inputs; nil: as long as it takes.
    var patience: UInt64? {
        guard needsFreshInputs, let options = launch?.options, options.onLost == .fail else { return nil }
        return options.reconnect
    }

    /// The end of the reason: what the owner can do, and what happens otherwise. `keeper`: its pid, when the device has one.
    fileprivate func remedyForLostInputs(keeper: Int32?) -> String {
        if launch?.target.hasBlockMap == true {
            return "what was written to it is lost: end the use of the device and delete it with --force"
        }
        if isInMemory { return "its content is lost: end the use of the device and delete it with --force" }
        guard needsFreshInputs else {
            let header = launch?.target.takesSecret == true ? " (and --header, if it has one)" : ""
            return "requests wait: reopen the file with 'ubd recover -n \(id) -f FILE'\(header), "
                + "or end their use and delete it with --force"
        }
        let limit = patience.map { " for \($0 / 1000) s, and then fail" } ?? ""
        let who = keeper.map { "its keeper (process \($0))" } ?? "'ubd recover -n \(id)'"
        return "requests wait\(limit), unless \(who) makes a new connection"
    }

    /// How the worker ended, when its server caused that; nil otherwise. The words follow "its worker".
    func serversDoing(_ change: ProcessChange) -> String? {
        guard hasServer else { return nil }
        return switch change {
        case .exited(WorkerExit.connectionLost): "lost the connection to its server"
        case .exited(WorkerExit.serverViolation): "gave its server up, which sent what the protocol does not allow"
        default: nil
        }
    }

    /// Why it is not upgraded where the kernel can not quiesce it: the old worker's replies may be left in its sockets.
    var wouldLoseConnections: InterfaceError {
        .kernelUnsupported(
            message: "the kernel can not quiesce \(info.link ?? info.node), and no second worker can use its "
                + "connections while requests are under way",
            remedy: "delete it and add it again, or use Linux 6.16 or later", feature: "QUIESCE")
    }

    /// The first option to which the server agrees now and which differs from the device's; nil when none does. An option that
    /// the client leaves out counts as different, unless the device has its default.
    func disagreement(_ given: [OptionValue]) throws(InterfaceError) -> InterfaceError? {
        guard needsFreshInputs, let launch else { return nil }
        let now = try DeviceOptions(target: launch.target, options: given)
        for option in launch.target.options where option.isAgreed || given.contains(where: { $0.name == option.name }) {
            let isTold = given.contains { $0.name == option.name }
            let before = launch.options[option.number]
            guard before != now[option.number] else { continue }
            let value = isTold ? DeviceOptions.text(of: option, now[option.number]) : "not told"
            return .invalidOption(
                message: "\(option.name) is \(value) now, and was \(DeviceOptions.text(of: option, before)) "
                    + "when device \(id) was added: this is another export",
                remedy: "bring connections to the export that it was added with; the device waits on",
                option: option.name, value: value)
        }
        return nil
    }
}

extension DeviceOptions {
    /// A value for messages.
    fileprivate static func text(of option: TargetOption, _ value: TargetOption.Value?) -> String {
        switch (option.kind, value) {
        case (_, nil): "not given"
        case (.choice(let names), .number(let place)?) where place < UInt64(names.count): names[Int(place)]
        case (_, .number(let number)?): "\(number)"
        case (_, .text(let text)?): "'\(text)'"
        }
    }
}
