"""What puts folders into the server: lists as a tar."""

from folders.download import tar_response
from server.application import Room

FOLDERS = Room(formats={"tar": tar_response})
