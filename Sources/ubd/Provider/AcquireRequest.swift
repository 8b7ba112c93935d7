import BrokerInterface
import Varlink

/// The parameters of a call, taken one by one; null means absent (UAPI.20, Nullable Fields).
struct ProviderParameters {
    private var members: [JSON.Member]

    /// `parameters`: an object; `Call` accepts nothing else.
    init(_ parameters: JSON) {
        guard case .object(let members) = parameters else {
            self.members = []
            return
        }
        self.members = members
    }

    private mutating func take(_ name: String) -> JSON? {
        guard let index = members.firstIndex(where: { $0.name.hasSameBytes(as: name) }) else { return nil }
        let value = members.remove(at: index).value
        return value == .null ? nil : value
    }

    mutating func text(_ name: String) throws(StorageProvider.Refusal) -> String? {
        switch take(name) {
        case nil: return nil
        case .string(let text): return text
        default: throw .service(.invalidParameter(parameter: name))
        }
    }

    mutating func flag(_ name: String) throws(StorageProvider.Refusal) -> Bool? {
        switch take(name) {
        case nil: return nil
        case .bool(let flag): return flag
        default: throw .service(.invalidParameter(parameter: name))
        }
    }

    mutating func number(_ name: String) throws(StorageProvider.Refusal) -> Int64? {
        switch take(name) {
        case nil: return nil
        case .integer(let number): return number
        default: throw .service(.invalidParameter(parameter: name))
        }
    }

    /// Refuses what nobody took.
    func finish() throws(StorageProvider.Refusal) {
        if let left = members.first { throw .service(.invalidParameter(parameter: left.name)) }
    }
}

/// The parameters of `Acquire`.
struct AcquireRequest: Equatable {
    enum CreateMode: String {
        /// Open it, or make it.
        case any
        /// Make it.
        case new
        /// Open it.
        case open
    }

    let name: String
    let createMode: CreateMode
    /// nil: writable where it can be.
    let readOnly: Bool?
    /// "reg", "blk" or "dir"; nil: whatever it is.
    let requestAs: String?
    /// nil: none was given.
    let createSizeBytes: UInt64?

    init(_ parameters: JSON) throws(StorageProvider.Refusal) {
        var parameters = ProviderParameters(parameters)
        guard let name = try parameters.text("name") else {
            throw .service(.invalidParameter(parameter: "name"))
        }
        self.name = name
        let mode = try parameters.text("createMode")
        guard let createMode = mode.map({ CreateMode(rawValue: $0) }) ?? .any else {
            throw .service(.invalidParameter(parameter: "createMode"))
        }
        self.createMode = createMode
        if let template = try parameters.text("template"), template != Volumes.template.name {
            throw .interface("NoSuchTemplate")
        }
        readOnly = try parameters.flag("readOnly")
        requestAs = try parameters.text("requestAs")
        guard requestAs.map({ ["reg", "blk", "dir"].contains($0) }) ?? true else {
            throw .service(.invalidParameter(parameter: "requestAs"))
        }
        let size = try parameters.number("createSizeBytes")
        guard size.map({ $0 > 0 && $0 % 512 == 0 && UInt64($0) < ByteSize.maximum }) ?? true else {
            throw .service(.invalidParameter(parameter: "createSizeBytes"))
        }
        createSizeBytes = size.map(UInt64.init)
        // Of polkit: whether the user may be asked. Here nobody asks.
        _ = try parameters.flag("allowInteractiveAuthentication")
        try parameters.finish()
    }
}
