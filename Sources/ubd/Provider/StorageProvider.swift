import BrokerInterface
import Glibc
import Numbers
import SystemCalls
import Varlink

/// The interface `io.systemd.StorageProvider` of systemd 262 and later: hands volumes over as open block devices.
///
/// It runs as the user. The user's own process opens each device, never the broker. Names, modes and errors are those of
/// the interface's description (`StorageProviderDescription`), which is systemd's.
struct StorageProvider {
    static let interface = "io.systemd.StorageProvider"
    /// For failures that the interface has no error for.
    static let failedError = "io.ubd.Provider.Failed"

    let volumes: Volumes

    /// One reply, with the file that goes with it.
    struct Answer: ~Copyable {
        var reply: Reply
        var file: FileDescriptor?

        init(_ reply: Reply, file: consuming FileDescriptor? = nil) {
            self.reply = reply
            self.file = file
        }

        /// For the call that sends it.
        var files: [Int32] {
            switch file {
            case .some(let file): [file.raw]
            case .none: []
            }
        }
    }

    /// Why a call gets an error reply.
    enum Refusal: Error, Equatable {
        /// An error of the interface, which has no parameters.
        case interface(String)
        case service(InterfaceError)
        case failure(CommandFailure)

        var reply: Reply {
            switch self {
            case .interface(let name): Reply(error: StorageProvider.interface + "." + name)
            case .service(let error): error.reply
            case .failure(let failure) where failure.status == .notPermitted:
                InterfaceError.permissionDenied.reply
            case .failure(let failure):
                Reply(
                    error: StorageProvider.failedError,
                    parameters: .record([
                        ("message", .string(failure.message.readable)), ("remedy", .string(failure.remedy.readable)),
                    ]))
            }
        }
    }

    /// Answers a call, with one reply or several.
    func answer(_ call: Call, _ send: (consuming Answer) throws(SystemError) -> Void) throws(SystemError) {
        do throws(Refusal) {
            switch call.method {
            case "org.varlink.service.GetInfo":
                try Self.refuseParameters(call)
                try reply(Answer(Reply(parameters: Self.serviceInfo)), send)
            case "org.varlink.service.GetInterfaceDescription":
                try reply(Answer(Reply(parameters: Self.description(call))), send)
            case Self.interface + ".Acquire": try reply(acquire(AcquireRequest(call.parameters)), send)
            case Self.interface + ".ListVolumes": try list(call, volumes.all(), send)
            case Self.interface + ".ListTemplates": try list(call, [Volumes.template], send)
            default: throw Self.unknown(call)
            }
        } catch {
            if case .failure(let failure) = error, failure.name == Self.lostConnection { return }
            try send(Answer(error.reply))
        }
    }

    /// The name of the failure that says that the client is gone: it gets no reply.
    private static let lostConnection = "ConnectionLost"

    private func reply(
        _ answer: consuming Answer, _ send: (consuming Answer) throws(SystemError) -> Void
    ) throws(Refusal) {
        do { try send(answer) } catch {
            throw .failure(CommandFailure(error, Self.lostConnection, remedy: "connect again"))
        }
    }

    private static func unknown(_ call: Call) -> Refusal {
        let known = ["org.varlink.service", interface, "io.ubd.Provider"].contains(call.interface)
        return .service(known ? .methodNotFound(method: call.method) : .interfaceNotFound(interface: call.interface))
    }

    // MARK: Lists

    /// One reply for each entry whose name matches the glob that the call may have.
    private func list(
        _ call: Call, _ entries: [any VolumeListEntry], _ send: (consuming Answer) throws(SystemError) -> Void
    ) throws(Refusal) {
        guard call.more else { throw .service(.expectedMore) }
        var parameters = ProviderParameters(call.parameters)
        let pattern = try parameters.text("matchName")
        try parameters.finish()
        let found = entries.filter { entry in pattern.map { fnmatch($0, entry.name, FNM_NOESCAPE) == 0 } ?? true }
        // Without an entry there is nothing that a reply could have; systemd's own providers say so by this error.
        guard !found.isEmpty else {
            throw .interface(entries.first is VolumeTemplate ? "NoSuchTemplate" : "NoSuchVolume")
        }
        for (index, entry) in found.enumerated() {
            try reply(Answer(Reply(parameters: entry.json, continues: index + 1 < found.count)), send)
        }
    }

    // MARK: Acquire

    /// Opens the volume, after making or attaching it where that is wanted and needed.
    private func acquire(_ request: AcquireRequest) throws(Refusal) -> Answer {
        if let wanted = request.requestAs, wanted != "blk" { throw .interface("WrongType") }
        let device = try device(request)
        if device.readOnly, request.readOnly == false { throw .interface("ReadOnlyVolume") }
        let readOnly = request.readOnly ?? device.readOnly
        let file: FileDescriptor
        do { file = try volumes.open(device, readOnly: readOnly) } catch { throw .failure(error) }
        return Answer(
            Reply(parameters: .record([("fileDescriptorIndex", 0), ("type", "blk"), ("readOnly", .bool(readOnly))])),
            file: file)
    }

    private func device(_ request: AcquireRequest) throws(Refusal) -> Device {
        do {
            let found = try volumes.find(request.name)
            switch (found, request.createMode) {
            case (.missing, .open), (.none, .open): throw Refusal.interface("NoSuchVolume")
            case (.device, .new), (.file, .new), (.enabled, .new): throw Refusal.interface("VolumeExists")
            case (.device(let device), _): return device
            case (.file, _): return try volumes.attach(request.name)
            case (.enabled, _): return try volumes.start(request.name)
            // A device's own name stands for a device that is there; nobody can make one of that name.
            case (.none, _): throw Refusal.interface("CreateNotSupported")
            case (.missing, _):
                guard let size = request.createSizeBytes else { throw Refusal.interface("CreateSizeRequired") }
                try volumes.create(request.name, bytes: size)
                do throws(CommandFailure) { return try volumes.attach(request.name) } catch {
                    volumes.remove(request.name, after: error)
                    throw error
                }
            }
        } catch let failure as CommandFailure {
            throw .failure(failure)
        } catch let refusal as Refusal {
            throw refusal
        } catch {
            throw .failure(CommandFailure(.failed, "Failed", "\(error)", remedy: "try again"))
        }
    }

    // MARK: org.varlink.service

    private static var serviceInfo: JSON {
        var info = ServiceInfoReply(version: UBDVersion.text)
        info.product = "ubd provide"
        info.interfaces = ["org.varlink.service", interface, "io.ubd.Provider"]
        return info.json
    }

    private static func refuseParameters(_ call: Call) throws(Refusal) {
        try ProviderParameters(call.parameters).finish()
    }

    private static func description(_ call: Call) throws(Refusal) -> JSON {
        var parameters = ProviderParameters(call.parameters)
        guard let name = try parameters.text("interface") else {
            throw .service(.invalidParameter(parameter: "interface"))
        }
        try parameters.finish()
        let text =
            switch name {
            case "org.varlink.service": BrokerAPI.serviceDescription
            case interface: StorageProviderDescription.text
            case "io.ubd.Provider": StorageProviderDescription.own
            default: ""
            }
        guard !text.isEmpty else { throw .service(.interfaceNotFound(interface: name)) }
        return InterfaceDescriptionReply(description: text).json
    }
}
