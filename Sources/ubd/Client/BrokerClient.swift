import BrokerInterface
import Glibc
import SystemCalls
import Varlink

/// The broker's methods as functions. Each call opens a connection of its own, so that closing it ends the call.
struct BrokerClient {
    let environment: CommandEnvironment

    /// The caller's devices; root sees everyone's.
    func list(id: UInt32? = nil) throws(CommandFailure) -> [Device] {
        try callForMore(.list(ListRequest(id: id)), first: []) { (devices, parameters) throws(InterfaceError) in
            devices += try ListReply(parameters: parameters, unknown: .ignore).devices
        }
    }

    /// The counters of the caller's devices; root sees everyone's. `queues`: for a single device only.
    func stats(id: UInt32? = nil, queues: Bool? = nil) throws(CommandFailure) -> StatsReply {
        let none = StatsReply(latencyBounds: [], devices: [])
        return try callForMore(.stats(StatsRequest(id: id, queues: queues)), first: none) {
            (all, parameters) throws(InterfaceError) in
            let reply = try StatsReply(parameters: parameters, unknown: .ignore)
            all.latencyBounds = reply.latencyBounds
            all.devices += reply.devices
        }
    }

    /// Tells `hear` what becomes of devices, in the broker's order, nil once when what is now has been told; until `isWanted`,
    /// which is asked after each reply and every second, says no.
    ///
    /// - Throws: also when the broker ends.
    func monitor(
        _ request: MonitorRequest, whileWanted isWanted: () -> Bool, _ hear: (DeviceChange?) -> Void
    ) throws(CommandFailure) {
        // Its turn is one for the first reply.
        var connection = try Turn.take(environment) { () throws(CommandFailure) in
            var connection = try BrokerConnection(environment, deadline: Deadline(seconds: environment.callSeconds))
            try connection.send(BrokerCall.monitor(request).call)
            try Self.hear(connection.receive().reply, hear)
            return connection
        }
        while isWanted(), let incoming = try connection.receive(whileWanted: isWanted) {
            try Self.hear(incoming.reply, hear)
        }
    }

    private static func hear(_ reply: Reply, _ hear: (DeviceChange?) -> Void) throws(CommandFailure) {
        try check(reply)
        let told = try read { () throws(InterfaceError) in
            guard reply.continues else { throw .invalidParameter(parameter: "continues") }
            return try MonitorReply(parameters: reply.parameters, unknown: .ignore)
        }
        hear(told.change)
    }

    /// The broker, the host, and what the caller may do.
    func info(seconds: Int? = nil) throws(CommandFailure) -> InfoReply {
        let reply = try call(.info, seconds: seconds ?? environment.callSeconds)
        return try Self.read { () throws(InterfaceError) in
            try InfoReply(parameters: reply.parameters, unknown: .ignore)
        }
    }

    /// Deletes a device.
    func delete(_ request: DeleteRequest) throws(CommandFailure) {
        _ = try call(.delete(request), seconds: environment.callSeconds)
    }

    /// Adds a device. Parks as many of `files` as the broker wants; the caller keeps them.
    func add(_ request: AddRequest, files: [Int32]) throws(CommandFailure) -> (Device, [Notice]) {
        try Turn.take(environment) { () throws(CommandFailure) in
            try bring(.add(request), doing: "adding the device") { (count, parking) throws(CommandFailure) in
                try Self.park(Array(files.prefix(count)), in: parking)
            }
        }
    }

    /// Brings the file of a device that waits for it. Opens it only when the broker asks for it, since a device that
    /// does not wait uses the file itself.
    func recover(
        _ request: RecoverRequest, open: () throws(CommandFailure) -> BackingFile
    ) throws(CommandFailure) -> Device {
        try Turn.take(environment) { () throws(CommandFailure) in
            try bring(.recover(request), doing: "recovering the device") { (count, parking) throws(CommandFailure) in
                let backing = try open()
                try Self.park(Array(backing.numbers.prefix(count)), in: parking)
            }.0
        }
    }

    /// Brings fresh connections of a device that waits for them. They stay the caller's.
    func recover(_ request: RecoverRequest, sockets: [Int32]) throws(CommandFailure) -> Device {
        try Turn.take(environment) { () throws(CommandFailure) in
            try bring(.recover(request), doing: "recovering the device") { (count, parking) throws(CommandFailure) in
                try Self.park(Array(sockets.prefix(count)), in: parking)
            }.0
        }
    }

    /// Replaces a device's worker.
    func upgrade(_ request: UpgradeRequest) throws(CommandFailure) -> UpgradeReply {
        let reply = try call(.upgrade(request), seconds: environment.upgradeSeconds)
        return try Self.read { () throws(InterfaceError) in
            try UpgradeReply(parameters: reply.parameters, unknown: .ignore)
        }
    }

    /// Gives a device another size.
    func resize(_ request: ResizeRequest) throws(CommandFailure) -> ResizeReply {
        let reply = try call(.resize(request), seconds: environment.upgradeSeconds)
        return try Self.read { () throws(InterfaceError) in
            try ResizeReply(parameters: reply.parameters, unknown: .ignore)
        }
    }

    /// A call in which the broker asks for files.
    private func bring(
        _ call: BrokerCall, doing what: String,
        _ park: (_ count: Int, _ parking: consuming FileDescriptor) throws(CommandFailure) -> Void
    ) throws(CommandFailure) -> (Device, [Notice]) {
        var connection = try BrokerConnection(
            environment, deadline: Deadline(seconds: environment.addSeconds))
        let console = environment.console
        let started = monotonicNanoseconds()
        connection.tick = {
            let seconds = (monotonicNanoseconds() - started) / 1_000_000_000
            if seconds >= 1 { console.progress("ubd: \(what), \(seconds) s …") }
        }
        defer { console.progress(nil) }
        try connection.send(call.call)
        var incoming = try connection.receive(acceptsFile: true)
        if case .files(let count, _) = try Self.addReply(incoming.reply) {
            guard let parking = incoming.file.take() else {
                throw Self.unexpected("the broker asked for files but sent no socket for them")
            }
            try park(count, parking)
            incoming = try connection.receive()
        }
        guard case .added(let device, let notices) = try Self.addReply(incoming.reply) else {
            throw Self.unexpected("the broker asked for files twice")
        }
        return (device, notices)
    }

    private static func addReply(_ reply: Reply) throws(CommandFailure) -> AddReply {
        try check(reply)
        return try read { () throws(InterfaceError) in
            let result = try AddReply(parameters: reply.parameters, unknown: .ignore)
            guard case .files = result, !reply.continues else { return result }
            throw .invalidParameter(parameter: "continues")
        }
    }

    /// Sends the files as one message of one byte, and closes the socket.
    private static func park(_ files: [Int32], in parking: consuming FileDescriptor) throws(CommandFailure) {
        guard !files.isEmpty else { throw unexpected("the broker asked for files, but the target has none") }
        // Files in a socket count for their user, also those of live devices (unix(7), ETOOMANYREFS).
        let limit = raiseOpenFiles()
        do { try SystemCalls.send(parking.raw, [0], files: files) } catch {
            guard error.errno != ETOOMANYREFS else {
                throw CommandFailure(
                    .notPermitted, "FilesNotTaken",
                    "your devices and the files under way to the broker are more than your limit of open files, \(limit)",
                    remedy: "delete a device, or let the administrator raise the limit ('ulimit -Hn')")
            }
            throw CommandFailure(
                .failed, "FilesNotTaken", "the files could not be sent: \(SystemError.message(error.errno))",
                remedy: "see 'ubd list' and the broker's log, then try again")
        }
    }

    /// Raises the soft limit of open files to the hard limit, which needs no privilege, and returns it.
    private static func raiseOpenFiles() -> UInt64 {
        var limit = rlimit()
        let number = __rlimit_resource_t(RLIMIT_NOFILE.rawValue)
        guard getrlimit(number, &limit) == 0 else { return 0 }
        limit.rlim_cur = limit.rlim_max
        setrlimit(number, &limit)
        return UInt64(limit.rlim_max)
    }

    private func call(_ call: BrokerCall, seconds: Int) throws(CommandFailure) -> Reply {
        try Turn.take(environment) { () throws(CommandFailure) in
            var connection = try BrokerConnection(environment, deadline: Deadline(seconds: seconds))
            try connection.send(call.call)
            let incoming = try connection.receive()
            try Self.check(incoming.reply)
            return incoming.reply
        }
    }

    /// A call that the broker answers with any number of replies; `take` adds each to the result.
    private func callForMore<Result>(
        _ call: BrokerCall, first: Result, _ take: (inout Result, JSON) throws(InterfaceError) -> Void
    ) throws(CommandFailure) -> Result {
        try Turn.take(environment) { () throws(CommandFailure) in
            var connection = try BrokerConnection(environment, deadline: Deadline(seconds: environment.callSeconds))
            try connection.send(call.call)
            var result = first
            var continues = true
            while continues {
                let incoming = try connection.receive()
                try Self.check(incoming.reply)
                try Self.read { () throws(InterfaceError) in try take(&result, incoming.reply.parameters) }
                continues = incoming.reply.continues
                connection.extend(bySeconds: environment.callSeconds)
            }
            return result
        }
    }

    /// Throws the error that a reply carries.
    private static func check(_ reply: Reply) throws(CommandFailure) {
        guard let name = reply.error else { return }
        let error = try read { () throws(InterfaceError) in
            try InterfaceError(name: name, parameters: reply.parameters, unknown: .ignore)
        }
        if let error { throw CommandFailure(error) }
        throw CommandFailure(
            .failed, name, "the broker replied an unknown error: \(name)",
            remedy: "use the ubd and ubd-broker of one version")
    }

    private static func read<Result>(_ body: () throws(InterfaceError) -> Result) throws(CommandFailure) -> Result {
        do { return try body() } catch { throw unexpected("the broker's reply is not understood: \(error.message)") }
    }

    private static func unexpected(_ message: String) -> CommandFailure {
        CommandFailure(.failed, "BrokenReply", message, remedy: "use the ubd and ubd-broker of one version")
    }
}
