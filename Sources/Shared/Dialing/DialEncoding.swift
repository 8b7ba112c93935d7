import Varlink

private let limits = JSONLimits(bytes: longestDialMessage, depth: 6)

extension DialReply {
    public var bytes: [UInt8] { json.bytes }

    private var json: JSON {
        switch self {
        case .failed(let failure):
            .record([
                ("failed", .string(failure.kind.rawValue)), ("message", .string(failure.message)),
                ("remedy", .string(failure.remedy)),
            ])
        case .agreed(let export):
            .record([
                ("label", .string(export.label)), ("connections", .integer(Int64(export.connections))),
                ("size", .string(String(export.size))), ("flags", .integer(Int64(export.flags))),
                ("minimumBlock", .integer(Int64(export.minimumBlock))),
                ("preferredBlock", .integer(Int64(export.preferredBlock))),
                ("maximumBlock", .integer(Int64(export.maximumBlock))), ("cipher", .string(export.cipher)),
                (
                    "notices",
                    .array(
                        export.notices.map {
                            .record([("code", .string($0.code)), ("message", .string($0.message))])
                        })
                ),
            ])
        }
    }

    public init(bytes: [UInt8]) throws(BrokenDialMessage) {
        let fields = try Fields(bytes)
        if let kind = fields.optionalText("failed") {
            guard let kind = DialFailure.Kind(rawValue: kind) else { throw BrokenDialMessage() }
            self = .failed(DialFailure(kind, try fields.text("message"), remedy: try fields.text("remedy")))
            return
        }
        guard let size = UInt64(try fields.text("size")), case .array(let notices)? = fields.json["notices"] else {
            throw BrokenDialMessage()
        }
        var export = DialedExport(
            label: try fields.text("label"), connections: try fields.number("connections"), size: size,
            flags: try fields.number("flags"), minimumBlock: try fields.number("minimumBlock"),
            preferredBlock: try fields.number("preferredBlock"), maximumBlock: try fields.number("maximumBlock"),
            cipher: try fields.text("cipher"))
        for notice in notices {
            let notice = Fields(json: notice)
            export.notices.append(DialNotice(try notice.text("code"), try notice.text("message")))
        }
        self = .agreed(export)
    }
}

extension KeepOrder {
    public var bytes: [UInt8] {
        JSON.record([("id", .integer(Int64(id))), ("generation", .string(String(generation)))]).bytes
    }

    public init(bytes: [UInt8]) throws(BrokenDialMessage) {
        let fields = try Fields(bytes)
        guard let generation = UInt64(try fields.text("generation")) else { throw BrokenDialMessage() }
        self.init(id: try fields.number("id"), generation: generation)
    }
}

private struct Fields {
    let json: JSON

    init(json: JSON) { self.json = json }

    init(_ bytes: [UInt8]) throws(BrokenDialMessage) {
        do { json = try JSON(parsing: bytes, limits: limits) } catch { throw BrokenDialMessage() }
    }

    func optionalText(_ name: String) -> String? {
        if case .string(let text)? = json[name] { text } else { nil }
    }

    func text(_ name: String) throws(BrokenDialMessage) -> String {
        guard let text = optionalText(name) else { throw BrokenDialMessage() }
        return text
    }

    func number<Number: FixedWidthInteger>(_ name: String) throws(BrokenDialMessage) -> Number {
        guard case .integer(let value)? = json[name], let number = Number(exactly: value) else {
            throw BrokenDialMessage()
        }
        return number
    }
}
