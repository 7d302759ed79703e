use std::io::Cursor;
use std::path::Path;

use lcow_driver::{Cancel, Isolation, OpenOptions, Store};
use lcow_image::{Event, ImageError, Images, Input, LoadOptions, Loaded};

/// A store that is gone with the test.
pub(crate) struct Bench {
    pub images: Images,
    pub directory: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let open = OpenOptions {
            isolation: Isolation::InProcess,
            ..OpenOptions::default()
        };
        let store = Store::open(&directory.path().join("root"), open).unwrap();
        Self {
            images: Images::open(&store).unwrap(),
            directory,
        }
    }

    pub(crate) fn store(&self) -> &Store {
        self.images.store()
    }

    pub(crate) fn stream(&self, bytes: Vec<u8>) -> Result<Vec<Loaded>, ImageError> {
        self.stream_with(bytes, &LoadOptions::default())
    }

    pub(crate) fn stream_with(
        &self,
        bytes: Vec<u8>,
        options: &LoadOptions,
    ) -> Result<Vec<Loaded>, ImageError> {
        self.load(
            Input::Stream {
                name: "the stream".to_owned(),
                reader: Box::new(Cursor::new(bytes)),
            },
            options,
        )
        .0
    }

    pub(crate) fn path(&self, path: &Path) -> Result<Vec<Loaded>, ImageError> {
        self.load(Input::Path(path.to_owned()), &LoadOptions::default())
            .0
    }

    pub(crate) fn file(&self, bytes: &[u8]) -> Result<Vec<Loaded>, ImageError> {
        let path = self.directory.path().join("in.tar");
        std::fs::write(&path, bytes).unwrap();
        self.path(&path)
    }

    pub(crate) fn load(
        &self,
        input: Input<'_>,
        options: &LoadOptions,
    ) -> (Result<Vec<Loaded>, ImageError>, Vec<Event>) {
        let events = std::sync::Mutex::new(Vec::new());
        let result = self.images.load(input, options, &Cancel::new(), &|event| {
            if !matches!(event, Event::Bytes(_)) {
                events.lock().unwrap().push(event);
            }
        });
        (result, events.into_inner().unwrap())
    }

    /// Nothing of a failed load is left: no layer, no image, no temporary file.
    pub(crate) fn assert_empty(&self) {
        assert_eq!(self.store().layers().unwrap(), []);
        assert!(self.images.list().unwrap().is_empty());
        self.assert_clean();
    }

    pub(crate) fn assert_clean(&self) {
        let left: Vec<_> = std::fs::read_dir(self.store().root().join("tmp"))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .filter(|name| name != ".commit")
            .collect();
        assert!(left.is_empty(), "left in tmp: {left:?}");
    }

    /// What `save` writes of all images.
    pub(crate) fn save(&self, query: &str) -> Vec<u8> {
        let image = self.images.find(query).unwrap();
        let names = image.names.clone();
        let mut out = Vec::new();
        let saved = [lcow_image::Saved { image, names }];
        self.images
            .save(&saved, &mut out, &Cancel::new(), &|_| {})
            .unwrap();
        out
    }
}
