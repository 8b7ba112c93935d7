import BrokerInterface
import Glibc
import SystemCalls
import Targets
import Varlink

/// `ubd del`: flushes a device as its user, then asks the broker to delete it.
struct DeleteCommand: PlainCommand {
    var number: UInt32?
    /// The device must be this one, and not another that has got its number.
    var generation: UInt64?
    var all: Bool
    var force: Bool
    var asJSON: Bool

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        let client = BrokerClient(environment: environment)
        var devices = try client.list(id: number)
        if let number, devices.isEmpty { throw ListCommand.noSuchDevice(number) }
        if let generation, let first = devices.first, first.generation != generation {
            throw ListCommand.otherGeneration(first, generation)
        }
        if let number, let first = devices.first, first.id == number, let set = first.set {
            devices = try others(of: first, set, client)
            // Nothing is deleted when one of them is in use, or cannot be flushed.
            if !force, devices.count > 1 { try flushAll(devices, client) }
        }
        let goesOn = devices.count > 1
        var deleted: [JSON] = []
        var failures: [CommandFailure] = []
        for device in devices {
            do {
                try delete(device, client)
                deleted.append(.integer(Int64(device.id)))
            } catch {
                // Another process has deleted it since it was listed, or is about to.
                if goesOn || all, error.status == .noSuchDevice || goesAnyway(device, error, client) { continue }
                // The others are still tried. The first failure decides the status and is printed last.
                if !failures.isEmpty { environment.console.error(error.line) }
                failures.append(error)
            }
        }
        if var first = failures.first {
            if goesOn || all { first.done = JSON.Member("deleted", .array(deleted)) }
            throw first
        }
        if asJSON { environment.console.out(JSON.record([("deleted", .array(deleted))]).text) }
        return .success
    }

    /// The device with those that were added with it; all are deleted together. A set's number is its owner's.
    private func others(
        of device: Device, _ set: Int64, _ client: BrokerClient
    ) throws(CommandFailure) -> [Device] {
        let devices = try client.list().filter { $0.set == set && $0.owner == device.owner }.sorted { $0.id < $1.id }
        if devices.count > 1 {
            let names = devices.map { $0.link ?? $0.node }.joined(separator: ", ")
            client.environment.console.error("ubd: note: deleted together, as they were added: \(names)".printable)
        }
        return devices
    }

    /// A device that another process is deleting ends its requests with errors: that is not its file's fault.
    private func refuseGoing(_ device: Device, _ client: BrokerClient) throws(CommandFailure) {
        guard let now = presentState(device, client) else { return }
        if now == nil { throw ListCommand.noSuchDevice(device.id) }
        guard now == .deleting else { return }
        throw CommandFailure(
            .busy, BrokerAPI.interface + ".Busy", "\(device.link ?? device.node) is \(BrokerAPI.beingDeleted)",
            remedy: "wait for that, see 'ubd list'")
    }

    private func flushAll(_ devices: [Device], _ client: BrokerClient) throws(CommandFailure) {
        for device in devices {
            do { try flush(device, client) } catch { if !goesAnyway(device, error, client) { throw error } }
        }
    }

    /// Whether another process has deleted it. One that is being deleted is waited for, but not for long: that may hang. `failure`: why
    /// it is asked; the broker says there that somebody is asking who uses the device, which is no state yet.
    private func goesAnyway(_ device: Device, _ failure: CommandFailure, _ client: BrokerClient) -> Bool {
        let isBegun = failure.status == .busy && failure.message.contains(BrokerAPI.beingDeleted)
        let deadline = Deadline(seconds: Self.goingSeconds)
        while let now = presentState(device, client) {
            guard let state = now, isBegun || state == .deleting, !deadline.hasPassed else { return now == nil }
            client.environment.pause(100)
        }
        return false
    }

    private static let goingSeconds = 5

    /// The state of the device now, nil within when it is gone; nil when the broker does not say.
    private func presentState(_ device: Device, _ client: BrokerClient) -> DeviceState?? {
        do throws(CommandFailure) {
            return .some(try client.list(id: device.id).first { $0.generation == device.generation }?.state)
        } catch {
            return error.status == .noSuchDevice ? .some(nil) : nil
        }
    }

    private func delete(_ device: Device, _ client: BrokerClient) throws(CommandFailure) {
        if !force { try flush(device, client) }
        do {
            try client.delete(
                DeleteRequest(id: device.id, generation: device.generation, force: force ? true : nil))
            if device.target == TargetManifest.fault.name { FaultControlFile.remove(device.id) }
        } catch {
            // The broker does not look into users' processes; the user may.
            guard error.status == .busy, let opener = DeviceOpener.find(device.node) else { throw error }
            var named = error
            named.message = error.message.replacing(BrokerAPI.openSomewhere, with: "open in \(opener)")
            throw named
        }
    }

    /// Fails when the device is mounted, swap or held, or cannot be flushed.
    static func refuseUse(of device: Device, _ client: BrokerClient, doing what: String) throws(CommandFailure) {
        do throws(CommandFailure) {
            try DeleteCommand(number: device.id, all: false, force: false, asJSON: false).flush(device, client)
        } catch {
            var failure = error
            failure.message += ", so it does not \(what)"
            if error.status == .busy {
                failure.remedy = "end what uses it, see 'ubd list -n \(device.id)', and try again"
            }
            throw failure
        }
    }

    /// Mounted, swap, or below another driver, or nobody can tell.
    private func isHeld(_ device: Device, _ environment: CommandEnvironment) -> Bool {
        if case .free = holding(device, environment) { return false }
        return true
    }

    private func holding(_ device: Device, _ environment: CommandEnvironment) -> Holding {
        let disk = device.node.split(separator: "/").last.map(String.init) ?? device.node
        return HolderName.find(
            disk, executable: environment.executable, deadline: Deadline(seconds: environment.lookSeconds))
    }

    /// The holder of a device whose exclusive open gave EBUSY.
    private func holder(of device: Device, _ environment: CommandEnvironment) -> String {
        switch holding(device, environment) {
        case .held(let holder): return holder
        case .free: return "open exclusively in some program"
        case .unknown(let why): return "in use, and the holder is not known (\(why))"
        }
    }

    /// Remedies for a flush that does not end, and for one that fails, besides --force; empty for a device that is
    /// lost.
    static func remedies(_ device: Device) -> (wait: String, repair: String) {
        switch (device.state, device.source) {
        case (.failed, _): ("", "")
        case (.recovering, _?) where device.hasConnections:
            (
                "bring its connections if it waits for them ('ubd recover -n \(device.id)'), or ",
                "try again when it is live, or "
            )
        case (.recovering, _?):
            (
                "bring its file if it waits for that ('ubd recover -n \(device.id)'), or ",
                "try again when it is live, or "
            )
        case (_, let source?): ("wait until its \(source) answers, or ", "repair its \(source) and try again, or ")
        case (_, nil): ("try again when 'ubd list' shows it as live, or ", "try again, or ")
        }
    }

    /// The node is not there, or another file has its name. Either it is gone with its disk, or it is in another /dev. In
    /// the second case the data that programs on the host have written cannot be flushed from here. A device without file
    /// and server has no data to lose.
    private func refuseUnseen(_ device: Device, because what: String, _ client: BrokerClient) throws(CommandFailure) {
        guard device.source != nil else { return }
        guard let now = try client.list(id: device.id).first, now.generation == device.generation,
            [.live, .recovering, .unmanaged].contains(now.state)
        else { return }
        throw CommandFailure(
            .failed, "NotFlushed", "\(device.node) \(what), so it cannot be flushed",
            remedy: "delete it on the host, give the container the host's /dev, or give up unwritten data with "
                + "'ubd del -n \(device.id) --force'")
    }

    /// One flush, and more of them while another program has the device for itself for a moment, as another `ubd del` does: one for each
    /// device of a set flushes them all.
    private func patientFlush(
        _ device: Device, _ environment: CommandEnvironment
    ) throws(SystemError) -> DeviceFlush.Outcome {
        let deadline = Deadline(seconds: environment.flushSeconds)
        for _ in 0..<Self.exclusiveTries {
            let outcome = try DeviceFlush.run(
                node: device.node, environment.identity(device.node), readOnly: device.readOnly, deadline: deadline)
            guard outcome == .busy, !isHeld(device, environment) else { return outcome }
            environment.pause(UInt64.random(in: 50...150))
        }
        return .busy
    }

    /// How often a device is tried that some program has for itself: for about two seconds.
    private static let exclusiveTries = 20

    /// The kernel drops unwritten data of a device that stops, so it is flushed first.
    private func flush(_ device: Device, _ client: BrokerClient) throws(CommandFailure) {
        let environment = client.environment
        let outcome: DeviceFlush.Outcome
        do { outcome = try patientFlush(device, environment) } catch {
            throw CommandFailure(
                error,
                remedy: CommandFailure.limitRemedy(error.errno)
                    ?? (error.errno == ENOENT
                        ? "mount sysfs on /sys, or delete it on the host, or unflushed with --force"
                        : "try again, or delete it unflushed with --force"))
        }
        let force = "'ubd del -n \(device.id) --force'"
        let (wait, repair) = Self.remedies(device)
        switch outcome {
        case .flushed: return
        case .noNode: try refuseUnseen(device, because: "is not in the /dev of this container", client)
        case .otherFile:
            try refuseUnseen(device, because: "is another file or disk in the /dev of this container", client)
        case .busy:
            throw CommandFailure(
                .busy, BrokerAPI.interface + ".Busy",
                "\(device.link ?? device.node) is " + holder(of: device, environment),
                remedy: "end that use first (umount, swapoff, dmsetup remove, …)")
        case .timedOut:
            throw CommandFailure(
                .failed, "Hangs", "\(device.node) could not be flushed within \(environment.flushSeconds) s",
                remedy: wait + "discard unwritten data with \(force)")
        case .failed("open", EACCES), .failed("open", EPERM):
            throw CommandFailure(
                .notPermitted, "NotPermitted", "you may not open \(device.node), so it can not be flushed",
                remedy: "delete it as its owner, or unflushed with \(force)")
        case .failed(let step, let number):
            try refuseGoing(device, client)
            throw CommandFailure(
                .failed, "NotFlushed", "\(step) \(device.node): \(SystemError.message(number))",
                remedy: repair + "discard unwritten data with \(force)")
        }
    }
}
